"""The fast lane: plain calls are answered where their bytes arrive, before mitmproxy sees them.

A `Lane` takes the place of the protocol of a client's transport. At a message boundary
(mitmproxy has seen all that it was given, and its HTTP layer is between two requests) a
complete, plain request whose samples are all stored is answered with one write; one that
others answer in time is waited for, with what comes behind it. Everything else goes on to
mitmproxy, byte for byte. The lane is out of sight but for its speed. What it relies on of
mitmproxy's and asyncio's inside is in `open_lane` and `is_idle`, and `self_check` tries it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.server import ConnectionHandler, TimeoutWatchdog

from sglang_cached_addon.wire import Head, HeadReader, NoHead

Answer = Callable[[Head, bytes], bytes | None]
"""The bytes that answer a request, or None if not every sample is stored."""

Way = Coroutine[Any, Any, bytes | None]
"""To the bytes that answer a request, or to None if that is for mitmproxy."""

Fill = Callable[[Head, bytes], Way | None]
"""The way to what is not all stored, or None if the request is for mitmproxy."""

MAX_HELD = 256 * 1024
"""Bytes that are taken from a client while its answer is waited for."""

logger = logging.getLogger("sglang_cached_addon")

# Received into and copied from before anything else happens, so all connections share it.
_BUFFER = bytearray(256 * 1024)
_VIEW = memoryview(_BUFFER)


class Lane(asyncio.BufferedProtocol):
    """Stands between a client's transport and the protocol that mitmproxy reads from."""

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        reader: HeadReader,
        answer: Answer,
        fill: Fill,
        watchdog: TimeoutWatchdog,
    ) -> None:
        self.given = 0
        """Bytes that mitmproxy has been given."""
        self.seen = 0
        """Of these, the ones that have come to its HTTP layer."""
        self.http: HttpLayer | None = None
        """None as long as nothing was given."""
        self.client: Client | None = None
        self._transport = transport
        self._protocol = protocol
        self._reader = reader
        self._answer = answer
        self._fill = fill
        self._watchdog = watchdog
        self._is_full = False
        """The client does not read as fast as it is answered."""
        self._held = bytearray()
        self._wanted = 0
        """Bytes of the held request, as far as its head is known."""
        self._filling: asyncio.Task[None] | None = None
        """Waits for an answer; what has come since is held."""

    # What the transport calls

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_VIEW[:nbytes])
        if self._filling:
            self._held += data
            if len(self._held) > MAX_HELD:
                self._transport.pause_reading()
        elif self._is_full or not self._is_at_boundary():
            self._give(data)
        elif not self._held:
            self._receive(data)
        else:
            self._held += data
            if len(self._held) >= self._wanted:
                self._receive(bytes(self._held))

    def eof_received(self) -> bool | None:
        if not self._leave():
            self._give(b"")
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self._is_full = True
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        self._protocol.resume_writing()

    # What it does

    def _is_at_boundary(self) -> bool:
        if self.given != self.seen:
            return False
        return self.http is None or self.client is None or is_idle(self.http, self.client)

    def _receive(self, data: bytes) -> None:
        """Answers the hits that the data begins with, and gives on or holds the rest."""
        while data:
            head = self._reader.read(data)
            if head is NoHead.FOREIGN:
                break
            end = 0 if head is NoHead.PARTIAL else head.size + head.length
            if head is NoHead.PARTIAL or len(data) < end:
                self._wanted = end
                self._held[:] = data
                return
            body = data[head.size : end]
            answer = self._answer(head, body)
            if answer is None:
                way = self._fill(head, body)
                if way is None:
                    break
                self._held.clear()
                self._wanted = 0
                self._filling = asyncio.ensure_future(self._wait(way, head, data))
                return
            data = data[end:]
            if not self._send(answer, head):
                return
            if self._is_full:
                break
        self._held.clear()
        self._wanted = 0
        self._give(data)

    def _send(self, answer: bytes, head: Head) -> bool:
        """Whether there may be another request."""
        self._watchdog.register_activity()
        self._transport.write(answer)
        if head.closes:
            self._held.clear()
            self._transport.close()
        return not head.closes

    async def _wait(self, way: Way, head: Head, data: bytes) -> None:
        """Answers the request that the data begins with, or gives it on, and then what has come
        behind it."""
        answer = None
        try:
            with self._watchdog.disarm():
                answer = await way
        except Exception:  # as with a hook that fails: the request goes on without us
            logger.exception("sglang-cached: error in the fast lane")
        self._filling = None
        behind = bytes(self._held)
        self._held.clear()
        self._transport.resume_reading()
        if answer is None:
            self._give(data + behind)
        elif self._send(answer, head):
            rest = data[head.size + head.length :] + behind
            if self._is_full:
                self._give(rest)
            else:
                self._receive(rest)

    def _leave(self) -> bool:
        """The client is gone, and wants no answer; whether one was waited for."""
        filling, self._filling = self._filling, None
        if filling:
            filling.cancel()
            self._held.clear()
        return filling is not None

    def _give(self, data: bytes) -> None:
        """Gives bytes, and those held before them, to mitmproxy."""
        if self._held:
            data = bytes(self._held) + data
            self._held.clear()
            self._wanted = 0
        if data:
            self.given += len(data)
            self._protocol.data_received(data)


class Passage(layer.Layer):
    """Stands before the `HttpLayer` that is set as its `child_layer`, and tells the lane what
    has come to it."""

    child_layer: HttpLayer

    def __init__(self, context: Context, lane: Lane) -> None:
        super().__init__(context)
        self._lane = lane

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if type(event) is events.DataReceived and event.connection is self.context.client:
            self._lane.http = self.child_layer
            self._lane.seen += len(event.data)
        yield from self.child_layer.handle_event(event)

    # Required by mitmproxy; `handle_event` leaves nothing for it to do.
    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        return self.handle_event(event)


def open_lane(
    handler: ConnectionHandler, reader: HeadReader, answer: Answer, fill: Fill
) -> Lane | None:
    """Puts a lane before a client that has just connected; None where that cannot be."""
    io = handler.transports[handler.client]
    stream, writer = io.reader, io.writer
    if not isinstance(stream, asyncio.StreamReader) or not isinstance(writer, asyncio.StreamWriter):
        return None
    transport, protocol = writer.transport, writer.transport.get_protocol()
    if not isinstance(transport, asyncio.Transport) or not isinstance(protocol, asyncio.Protocol):
        return None
    lane = Lane(transport, protocol, reader, answer, fill, handler.timeout_watchdog)
    lane.client = handler.client
    lane.given = _unread(stream)
    transport.set_protocol(lane)
    return lane


def _unread(stream: asyncio.StreamReader) -> int:
    """Bytes that came before the lane."""
    return len(stream._buffer)  # type: ignore[attr-defined]


def is_idle(http: HttpLayer, client: Client) -> bool:
    """Whether mitmproxy's HTTP layer is between two requests of an HTTP/1 client."""
    server = http.connections.get(client)
    return (
        isinstance(server, Http1Server)
        and not http.streams
        and not server.buf
        and server.state == server.read_headers
    )


def self_check() -> str | None:
    """What is wrong with the parts that the lane relies on; None if nothing is."""
    try:
        client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0.0)
        http = HttpLayer(Context(client, Options()), HTTPMode.transparent)
        list(http.handle_event(events.Start()))
        before = is_idle(http, client)
        list(http.handle_event(events.DataReceived(client, b"POST / HTTP/1.1\r\n")))
        after = is_idle(http, client)
        loop = asyncio.new_event_loop()
        try:
            stream = asyncio.StreamReader(loop=loop)
            stream.feed_data(b"12")
            unread = _unread(stream)
        finally:
            loop.close()
    except Exception as e:  # whatever another version may raise
        return repr(e)
    return None if (before, after, unread) == (True, False, 2) else f"{before}, {after}, {unread}"
