"""The connections of clients: how far each has come, how long that may take, and which goes first.

mitmproxy hangs up where nothing has happened for ten minutes, whoever waits for an answer. Here
only who is not waited for is hung up, and a head that has begun has to end. Where descriptors
run short, `hang_up` makes room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from mitmproxy.connection import Client
from mitmproxy.proxy.server import ConnectionHandler

from sglang_cached_addon.proxy import inside
from sglang_cached_addon.proxy.delivery import Delivery
from sglang_cached_addon.proxy.selfcheck import InsidePart, has
from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.service.findings import Bypass

HEAD_SECONDS = 30.0
"""How many seconds a request head may take, from its first byte on."""


class Progress(IntEnum):
    """How far a connection has come. Where room must be made, the lower ones are hung up first."""

    HEAD = 0
    """There is no whole head of a first request, or of the next one that has begun."""
    IDLE = 1
    """Between two requests."""
    BODY = 2
    """A request is on its way."""
    ANSWER = 3
    """A whole request has not been answered in full."""
    PIPE = 4
    """It is not HTTP any more."""


class HeadTimer:
    """Tells somebody when a head takes too long."""

    def __init__(self, is_late: Callable[[], object]) -> None:
        self.since: float | None = None
        """When the present head began, in Unix seconds; None where there is none."""
        self._is_late = is_late
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """A head has begun, or goes on."""
        if self._timer is None:
            self.since = time.time()
            self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._is_late)

    def end(self) -> None:
        """The head is complete, or nobody wants it any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self.since = None


class Stage(Protocol):
    """Something that a client's bytes go through."""

    head: HeadTimer

    @property
    def progress(self) -> Progress | None:
        """How far a request has come that this stage has in its hands; None if it has none."""


class Door(Stage, Protocol):
    """The last stage before mitmproxy."""

    seen: int
    """How many bytes have come to it."""

    @property
    def is_idle(self) -> bool:
        """Whether it, and mitmproxy behind it, are between two requests."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A request that the lane has given on to mitmproxy, since it is not looked up."""

    ask: Ask
    bypass: Bypass


class ClientConnection:
    """The connection of one client."""

    def __init__(self, handler: ConnectionHandler, writer: asyncio.StreamWriter) -> None:
        assert isinstance(writer.transport, asyncio.Transport)
        self.handler = handler
        self.writer = writer
        self.transport = writer.transport
        self.lane: Stage | None = None
        """Where bytes come first, if there is one."""
        self.door: Door | None = None
        """Where they come next; None as long as nothing did."""
        self.handed: Handed | None = None
        """The request that mitmproxy reads next, where the lane has asked the service about it."""
        self.calls = 0
        """How many requests that mitmproxy has read from it are not answered in full."""
        self.delivery = Delivery(lambda: self.unread)
        """What mitmproxy has answered for us."""
        self._made = time.time()
        self._watchdog = handler.timeout_watchdog

    def take_handed(self) -> Handed | None:
        """The request that mitmproxy has just read, if the lane has handed it on."""
        handed, self.handed = self.handed, None
        return handed

    @property
    def stages(self) -> list[Stage]:
        return [stage for stage in (self.lane, self.door) if stage]

    @property
    def progress(self) -> Progress:
        for stage in self.stages:
            if (progress := stage.progress) is not None:
                return progress
        return Progress.HEAD

    @property
    def since(self) -> float:
        """When its present head began, if it is at one; else when its client was last heard of."""
        if self.progress is not Progress.HEAD:
            return self._watchdog.last_activity
        begun = [stage.head.since for stage in self.stages if stage.head.since is not None]
        return min(begun, default=self._made)

    @property
    def unread(self) -> int:
        """Bytes that the client has not taken."""
        return self.transport.get_write_buffer_size()

    async def watch(self) -> None:
        """Returns when the client has been idle for too long. Each byte begins that time anew; a
        client that takes what there is of its answer may wait for the rest as long as it takes."""
        watchdog = self._watchdog
        while True:
            left = watchdog.last_activity + watchdog.timeout - time.time()
            if left <= 0 and not self._is_waited_for:
                return
            await asyncio.sleep(left if left > 0 else watchdog.timeout)

    @property
    def _is_waited_for(self) -> bool:
        if self._watchdog.blocker:  # a hook is at work
            return True
        progress = self.progress
        # In HTTP/2, whose frames are a pipe here, only mitmproxy knows what is asked.
        is_asked = progress is Progress.ANSWER or (progress is Progress.PIPE and self.calls > 0)
        return is_asked and not self.unread


class Connections:
    """The connections of all clients."""

    def __init__(self) -> None:
        self._open: dict[Client, ClientConnection] = {}

    @property
    def busy(self) -> int:
        """How many connections have a request on its way, or one that is not answered in full."""
        busy = (Progress.BODY, Progress.ANSWER)
        return sum(connection.progress in busy for connection in self._open.values())

    def get(self, client: Client) -> ClientConnection | None:
        return self._open.get(client)

    def add(self, handler: ConnectionHandler) -> ClientConnection | None:
        """Notes a connection that was just made; None where nothing can be known of it."""
        connection = open_connection(handler)
        if connection:
            self._open[handler.client] = connection
        return connection

    def remove(self, client: Client) -> None:
        if connection := self._open.pop(client, None):
            connection.delivery.end(is_broken=connection.unread > 0)
            for stage in connection.stages:
                stage.head.end()

    def hang_up(self, count: int, seconds: float = 0.0) -> int:
        """Hangs up so many of those that nobody waits for, and were heard of last before so many
        seconds: first the ones without a whole head, then the idle ones, the oldest first. How many
        there were."""
        before = time.time() - seconds
        found = [
            (progress, connection.since, connection)
            for connection in self._open.values()
            if (progress := connection.progress) <= Progress.IDLE
            and not connection.unread
            and connection.since <= before
        ]
        found.sort(key=lambda each: each[:2])
        for _, _, connection in found[:count]:
            connection.transport.abort()
        return len(found[:count])


def open_connection(handler: ConnectionHandler) -> ClientConnection | None:
    """A connection that is watched from now on; None if it cannot be, or is not one of TCP."""
    if not has(InsidePart.WATCHDOG, InsidePart.LAYERS):
        return None
    writer = inside.end_of(handler).writer
    if not isinstance(writer, asyncio.StreamWriter):
        return None
    connection = ClientConnection(handler, writer)
    inside.watch(handler, connection.watch)
    return connection
