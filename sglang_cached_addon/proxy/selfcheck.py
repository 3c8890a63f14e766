"""Whether the inside of mitmproxy and asyncio is as `inside` relies on it.

Each `InsidePart` is tried once, at start. Where one is not as expected, what needs it is off,
`faults` has a line for the log, and the rest works. Decides nothing about requests.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import closing
from enum import Enum
from functools import cache
from typing import Any, cast

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode, HttpStream, RegisterHttpConnection
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO, TimeoutWatchdog

from sglang_cached_addon.proxy.inside import http1, http_events, is_idle, queued, unread


class InsidePart(Enum):
    """A part of the inside; its value is what is off without it."""

    LAYERS = "streamed answers, strict reading of requests and the fast lane"
    ANSWERS = "strict reading of answers that are passed on"
    WATCHDOG = "time limits for clients, strict reading of requests and the fast lane"
    READER = "the fast lane"
    SERVERS = "waiting for free file descriptors"


@cache
def faults() -> dict[InsidePart, str]:
    """What is not as expected, by the part that it concerns."""
    return {part: fault for part in InsidePart if (fault := _fault(part))}


def has(*parts: InsidePart) -> bool:
    """Whether these parts are as expected."""
    return not faults().keys() & set(parts)


def _fault(part: InsidePart) -> str:
    try:
        return "" if _CHECKS[part]() else "it behaves in another way"
    except Exception as e:  # whatever another version may raise
        return repr(e)


class _Trial(HttpLayer):
    """Notes which methods mitmproxy calls that `gateway` overrides."""

    def __init__(self, context: Context) -> None:
        super().__init__(context, HTTPMode.transparent)
        self.called: list[str] = []
        self.reader: object = None
        """What reads upstream's answer."""

    def event_to_child(
        self, child: layer.Layer, event: events.Event
    ) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.RequestHeaders) and isinstance(child, HttpStream):
            self.called.append("event_to_child")
        yield from super().event_to_child(child, event)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        self.called.append("make_stream")
        yield from super().make_stream(stream_id)

    def get_connection(self, event: Any, *, reuse: bool = True) -> layer.CommandGenerator[None]:
        self.called.append("get_connection")
        is_known = isinstance(self.command_sources[event], HttpStream)
        yield from super().get_connection(event, reuse=reuse)
        assert is_known

    def register_connection(self, command: RegisterHttpConnection) -> layer.CommandGenerator[None]:
        self.called.append("register_connection")
        self.reader = self.connections[command.connection].context.layers[-1]
        yield from super().register_connection(command)


class _NoOptions(Options):
    """Options of which none is set, whichever mitmproxy asks for."""

    def __getattr__(self, name: str) -> None:
        return None


def _tried() -> tuple[_Trial, list[bool]]:
    """A layer that a request has gone through, and whether it was idle: at first, with half a
    head, and with a whole request."""
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0.0)
    context = Context(client, _NoOptions())
    context.server.address = ("127.0.0.1", 3)
    trial, idle = _Trial(context), []
    for data in (b"", b"GET / HTTP/1.1\r\n", b"Host: x\r\n\r\n"):
        waiting: list[events.Event] = [
            events.DataReceived(client, data) if data else events.Start()
        ]
        for event in waiting:
            for command in trial.handle_event(event):
                if isinstance(command, commands.StartHook):
                    waiting.append(events.HookCompleted(command))
                elif isinstance(command, commands.OpenConnection):
                    waiting.append(events.OpenConnectionCompleted(command, None))
        idle.append(is_idle(trial, client))
    return trial, idle


def _check_layers() -> bool:
    trial, idle = _tried()
    called = ["make_stream", "event_to_child", "get_connection", "register_connection"]
    seen = (trial.called, idle, len(trial.streams), queued(trial))
    return seen == (called, [True, False, False], 1, 0)


def _check_answers() -> bool:
    reader = _tried()[0].reader
    return (
        type(reader) is http1.Http1Client
        and reader.state == reader.read_headers
        and all(callable(getattr(reader, name)) for name in ("read_headers", "read_body"))
        and {"request", "stream_id"} <= set(dir(reader))
        and "body_reader" in _annotations(http1.Http1Client)
        and hasattr(reader.buf, "maybe_extract_lines")
    )


def _annotations(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}


def _check_watchdog() -> bool:
    told: list[str] = []

    async def tell() -> None:
        told.append("callback")

    dog = TimeoutWatchdog(1, cast(Any, None))
    dog.callback = tell
    dog.register_activity()
    is_new = 0 <= time.time() - dog.last_activity < 60
    dog.last_activity = 0.0
    _drive(dog.watch())
    handler = ("server_event", "drain_writers", "on_timeout")
    return (
        (is_new, told, dog.timeout, dog.blocker) == (True, ["callback"], 1, 0)
        and all(callable(getattr(ConnectionHandler, name)) for name in handler)
        and {"transports", "timeout_watchdog", "client"} <= _annotations(ConnectionHandler)
        and {"handler", "reader", "writer"} <= vars(ConnectionIO()).keys()
        and {"connections", "servers"} <= vars(Proxyserver()).keys()
    )


def _drive(coroutine: Any) -> Any:
    """Runs a coroutine that waits for nothing, without an event loop; what it returns."""
    with closing(coroutine):
        for _ in range(10):
            try:
                coroutine.send(None)
            except StopIteration as e:
                return e.value
    raise TimeoutError


def _check_reader() -> bool:
    with closing(asyncio.new_event_loop()) as loop:
        stream = asyncio.StreamReader(loop=loop)
        stream.feed_data(b"12")
        return unread(stream) == 2


def _check_servers() -> bool:
    instance = cast(Any, ServerInstance.make("reverse:http://127.0.0.1:1", cast(Any, None)))
    with closing(asyncio.SelectorEventLoop()) as loop, socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        server = _drive(loop.create_server(asyncio.Protocol, sock=end))
        is_read = loop.remove_reader(end.fileno())
        server.close()
        return is_read and instance._servers == [] and callable(instance.handle_stream)


_CHECKS: dict[InsidePart, Callable[[], bool]] = {
    InsidePart.LAYERS: _check_layers,
    InsidePart.ANSWERS: _check_answers,
    InsidePart.WATCHDOG: _check_watchdog,
    InsidePart.READER: _check_reader,
    InsidePart.SERVERS: _check_servers,
}
