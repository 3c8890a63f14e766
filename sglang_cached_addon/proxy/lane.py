"""The fast lane: plain calls are answered where their bytes arrive, before mitmproxy sees them.

A `Lane` takes the place of the protocol of a client's transport. At a message boundary (mitmproxy
has seen all that it was given, and is between two requests) a complete, plain request goes to the
service. A hit is answered with one write; what takes time is waited for, and what comes behind it
is held. What the cache has nothing to do with goes on, byte for byte, to the `FramingLayer`
before mitmproxy; where that is known only after the service was asked, the hooks are told by
`Connection.handed`. The lane is out of sight but for its speed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from enum import Enum
from typing import Any

from sglang_cached_addon.proxy.connections import ClientConnection, Handed, HeadTimer, Progress
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.framing_layer import MAX_HELD, refusal
from sglang_cached_addon.proxy.held import Held, part
from sglang_cached_addon.proxy.next_protocol import NextProtocol, behind
from sglang_cached_addon.proxy.requests import is_local
from sglang_cached_addon.proxy.writing import Received, Writer
from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.service.findings import Bypass, Hit
from sglang_cached_addon.service.stream import Cut
from sglang_cached_addon.wire.http1 import HeadReader, NoHead, PlainHead

# Received into and copied from before anything else happens, so all connections share it.
_BUFFER = bytearray(256 * 1024)
_VIEW = memoryview(_BUFFER)


class State(Enum):
    """What becomes of the bytes that come."""

    READY = "requests are answered, or given to mitmproxy"
    ANSWERING = "an answer is waited for, or written"
    FULL = "the client has to read first"
    GIVING = "a large request is on its way to mitmproxy"
    GONE = "nobody is there any more"


class Lane(asyncio.BufferedProtocol):
    """Stands between a client's transport and the protocol that mitmproxy reads from."""

    def __init__(
        self, connection: ClientConnection, following: NextProtocol, reader: HeadReader, desk: Desk
    ) -> None:
        self.head = HeadTimer(self._is_late)
        self._connection = connection
        self._transport = connection.transport
        self._next = following
        self._reader = reader
        self._desk = desk
        self._next_id = desk.ids.next
        self._is_local = is_local(connection.handler.client)
        self._watchdog = connection.handler.timeout_watchdog
        self._writer = Writer(self._transport, desk, self._watchdog.register_activity)
        self._state = State.READY
        self._held = Held()
        self._task: asyncio.Task[None] | None = None
        """What is waited for, in `ANSWERING` and `GIVING`."""

    @property
    def progress(self) -> Progress | None:
        """As `connections.Stage`."""
        if self._state is not State.READY:
            return Progress.ANSWER
        if self._held:
            return Progress.BODY if self._held.wanted else Progress.HEAD
        return Progress.BODY if self._next.is_reading else None

    # Called by the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_VIEW[:nbytes])
        self._watchdog.register_activity()
        if self._state is not State.READY:
            self._held += data
            if len(self._held) > MAX_HELD:
                self._transport.pause_reading()
        elif not self._held:
            if self._next.is_at_boundary():
                self._receive(data)
            else:
                self._give(data)
        else:
            searched = 0 if self._held.wanted else len(self._held)
            self._held += data
            if len(self._held) >= self._held.wanted:
                self._receive(self._held, searched)

    def eof_received(self) -> bool | None:
        # What is held of a request will not be whole any more.
        self._leave()
        return self._next.protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._writer.delivery.end(is_broken=exc is not None)
        self._next.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writer.pause()
        self._next.protocol.pause_writing()

    def resume_writing(self) -> None:
        self._writer.resume()
        self._next.protocol.resume_writing()
        if self._state is State.FULL:
            self._be_ready()

    def _receive(self, data: bytes | bytearray, searched: int = 0) -> None:
        """Answers the calls that the data begins with, and gives on or holds the rest. The first
        `searched` bytes are known to be without the end of a head."""
        at = 0
        while at < len(data):
            head = self._reader.read(data, at, searched)
            searched = 0
            if head is NoHead.FOREIGN:
                break
            end = 0 if head is NoHead.PARTIAL else at + head.size + head.length
            if head is NoHead.PARTIAL or len(data) < end:
                self._held.keep(data, at)
                self._held.wanted = max(end - at, 0)
                if at or self._held.wanted:
                    self.head.end()
                if not self._held.wanted:
                    self.head.begin()
                return
            self.head.end()
            body = at + head.size
            raw = part(data, at, body)
            ask = Ask(head.call, part(data, body, end), raw, True, self._is_local)
            ask.id = head.call.request_id or self._next_id()
            started = time.monotonic()
            answer = self._desk.receive(ask)
            if not (type(answer) is Hit and self._writer.serve_at_once(ask, answer, started)):
                if isinstance(answer, Bypass):
                    self._connection.handed = Handed(ask, answer)
                    break
                self._held.keep(data, end)
                answering = self._answer(head, raw, ask, answer, started)
                self._wait_for(State.ANSWERING, answering)
                return
            at = end
            if head.closes:
                self._hang_up()
            if self._transport.is_closing():
                return
            if self._writer.is_full:
                self._held.keep(data, at)
                self._state = State.FULL
                return
        self._held.keep(data, at)
        if self._held:
            self.head.end()
            self._give(self._held.release())

    async def _answer(
        self, head: PlainHead, raw: bytes, ask: Ask, answer: Received, started: float
    ) -> None:
        """Answers a call in time, or gives it on, and then what has come behind it."""
        try:
            bypass = await self._writer.serve(ask, answer, started)
        except Cut:
            self._hang_up()
            return
        if self._state is not State.ANSWERING:
            return
        if bypass:
            self._give_back(Handed(ask, bypass), raw)
        elif head.closes:
            self._hang_up()
        else:
            self._be_ready()

    def _give_back(self, handed: Handed, raw: bytes) -> None:
        """Gives mitmproxy a request that the service has looked at, and what came behind it."""
        self._state, self._task = State.READY, None
        self._transport.resume_reading()
        self._connection.handed = handed
        self._give(raw, handed.ask.body, self._held.release())

    def _hang_up(self) -> None:
        self._leave()
        self._transport.close()

    def _is_late(self) -> None:
        """Refuses a head that has taken too long."""
        self._transport.write(refusal(408, "the request head took too long"))
        self._hang_up()

    def _wait_for(self, state: State, waits: Coroutine[Any, Any, None]) -> None:
        self._state = state
        # Never eagerly: one that is done at once would be done before it is known here.
        self._task = asyncio.Task(waits)

    def _be_ready(self) -> None:
        """Goes on with what has come meanwhile, if the client has room for answers."""
        self._task = None
        if self._writer.is_full:
            self._state = State.FULL
            return
        self._state = State.READY
        self._transport.resume_reading()
        if not self._held:
            return
        if self._next.is_at_boundary():
            self._receive(self._held)
        else:
            self._give(self._held.release())

    def _leave(self) -> None:
        """Lets go of what a client has asked for that is gone, and wants no answer."""
        if self._task:
            # When it has begun, so that what it waits for has an end.
            asyncio.get_running_loop().call_soon(self._task.cancel)
            self._task = None
        self.head.end()
        self._held.release()
        self._state = State.GONE

    def _give(self, *parts: bytes) -> None:
        """Gives bytes to mitmproxy; where they are many, in turn with what else there is to do."""
        if sum(map(len, parts)) > MAX_HELD:
            self._wait_for(State.GIVING, self._give_in_turn(parts))
        else:
            self._next.give(*parts)

    async def _give_in_turn(self, parts: tuple[bytes, ...]) -> None:
        await self._next.give_in_turn(*parts)
        if self._state is State.GIVING:
            self._be_ready()


def open_lane(connection: ClientConnection, reader: HeadReader, desk: Desk) -> None:
    """Puts a lane before a client that has just connected, where that can be."""
    if following := behind(connection):
        connection.lane = lane = Lane(connection, following, reader, desk)
        connection.transport.set_protocol(lane)
