"""The fast lane: a layer that answers full hits before a flow is built.

It owns a client's connection, with mitmproxy's HTTP layer as its child. At a message
boundary (the child has no open stream and no unread bytes) a complete, plain request whose
samples are all stored is answered with one write. Everything else goes to the child, byte
for byte. The lane never forwards, never waits for upstream, never stores, and is out of
sight but for its speed. Of mitmproxy's inside it uses what `is_idle` names.
"""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._http1 import Http1Server

from sglang_cached_addon.wire import Head, HeadReader, NoHead

Answer = Callable[[Head, bytes], bytes | None]
"""The bytes that answer a request, or None if not every sample is stored."""


class Express(layer.Layer):
    """Stands before the `HttpLayer` that is set as its `child_layer`."""

    child_layer: HttpLayer

    def __init__(self, context: Context, reader: HeadReader, answer: Answer) -> None:
        super().__init__(context)
        self._reader = reader
        self._answer = answer
        self._held = bytearray()
        self._wanted = 0
        """Bytes of the held request, as far as its head is known."""

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if type(event) is events.DataReceived and event.connection is self.context.client:
            if self._held or is_idle(self.child_layer, self.context):
                yield from self._receive(event.data)
                return
        elif (
            self._held
            and type(event) is events.ConnectionClosed
            and event.connection is self.context.client
        ):
            # The child sees all that came before the client left.
            yield from self._hand_over(bytes(self._held))
        yield from self.child_layer.handle_event(event)

    # Required by mitmproxy; `handle_event` leaves nothing for it to do.
    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        return self.handle_event(event)

    def _receive(self, data: bytes) -> layer.CommandGenerator[None]:
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return
            data = bytes(self._held)
        client = self.context.client
        while data:
            head = self._reader.read(data)
            if head is NoHead.FOREIGN:
                yield from self._hand_over(data)
                return
            end = 0 if head is NoHead.PARTIAL else head.size + head.length
            if head is NoHead.PARTIAL or len(data) < end:
                self._wanted = end
                self._held[:] = data
                return
            answer = self._answer(head, data[head.size : end])
            if answer is None:
                yield from self._hand_over(data)
                return
            yield commands.SendData(client, answer)
            if head.closes:
                self._forget()
                yield commands.CloseConnection(client)
                return
            data = data[end:]
        self._forget()

    def _hand_over(self, data: bytes) -> layer.CommandGenerator[None]:
        """Gives bytes to the child, as if they had just come."""
        self._forget()
        yield from self.child_layer.handle_event(events.DataReceived(self.context.client, data))

    def _forget(self) -> None:
        self._held.clear()
        self._wanted = 0


def is_idle(http: HttpLayer, context: Context) -> bool:
    """Whether mitmproxy's HTTP layer is between two requests of an HTTP/1 client."""
    server = http.connections.get(context.client)
    return (
        isinstance(server, Http1Server)
        and not http.streams
        and not server.buf
        and server.state == server.read_headers
    )


def self_check() -> str | None:
    """What is wrong with the parts of mitmproxy that the lane relies on; None if nothing is."""
    try:
        client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0.0)
        context = Context(client, Options())
        http = HttpLayer(context, HTTPMode.transparent)
        list(http.handle_event(events.Start()))
        before = is_idle(http, context)
        list(http.handle_event(events.DataReceived(client, b"POST / HTTP/1.1\r\n")))
        after = is_idle(http, context)
    except Exception as e:  # whatever another version of mitmproxy may raise
        return repr(e)
    return None if before and not after else f"idle: {before}, then {after}"
