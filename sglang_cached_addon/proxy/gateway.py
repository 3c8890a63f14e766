"""mitmproxy's HTTP layer, with our own answer where upstream gives none.

mitmproxy tells a client in HTML that the upstream cannot be reached, and closes the
connection; API clients get JSON here, and keep theirs. A streamed answer of ours comes from a
`Feed` in upstream's place. What is overridden is where `HttpLayer` hands an event to a layer of
its own, and looks for a connection.
"""

from __future__ import annotations

from typing import Any

from mitmproxy.proxy import commands, events, layer, layers, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import (
    GetHttpConnection,
    GetHttpConnectionCompleted,
    HttpLayer,
    HTTPMode,
    HttpStream,
    RegisterHttpConnection,
)
from mitmproxy.proxy.mode_specs import ReverseMode

from sglang_cached_addon.core.policy import MAX_BODY
from sglang_cached_addon.proxy.connections import ClientConnection
from sglang_cached_addon.proxy.feed import Feed
from sglang_cached_addon.proxy.framing_layer import FramingLayer
from sglang_cached_addon.proxy.front import Front
from sglang_cached_addon.proxy.inside import http1, http_events, read_with
from sglang_cached_addon.proxy.selfcheck import InsidePart, has
from sglang_cached_addon.proxy.strict_client import StrictHttp1Client

_HANDSHAKE = b"\x16"
"""What TLS begins with."""


class Gateway(HttpLayer):
    """An `HttpLayer` that asks a `Front`."""

    def __init__(self, context: Context, front: Front) -> None:
        super().__init__(context, HTTPMode.transparent)
        self._front = front
        front.clients.add(context.client)

    def get_connection(
        self, event: GetHttpConnection, *, reuse: bool = True
    ) -> layer.CommandGenerator[None]:
        stream = self.command_sources[event]
        feed = None
        if isinstance(stream, HttpStream):
            feed = self._front.open_feed(stream.flow, self.context.fork())
        if feed is None:
            yield from super().get_connection(event, reuse=reuse)
            return
        self.connections[feed.conn] = feed
        yield from self.event_to_child(feed, events.Start())
        del self.command_sources[event]
        answer = GetHttpConnectionCompleted(event, (feed.conn, None))
        yield from self.event_to_child(stream, answer)

    def register_connection(self, command: RegisterHttpConnection) -> layer.CommandGenerator[None]:
        # mitmproxy itself looks here for the end of a connection's layers.
        if has(InsidePart.ANSWERS):
            read_with(self.connections[command.connection].context.layers[-1], StrictHttp1Client)
        yield from super().register_connection(command)

    def make_stream(self, stream_id: int) -> layer.CommandGenerator[None]:
        stream = self.streams[stream_id] = BoundedStream(
            self.context.fork(), stream_id, self._front
        )
        yield from self.event_to_child(stream, events.Start())

    def event_to_child(
        self, child: layer.Layer, event: events.Event
    ) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.RequestHeaders) and isinstance(child, HttpStream):
            self._front.note_host(event.request)
        if isinstance(child, Feed):
            yield from super().event_to_child(child, event)
            if child.is_over:
                self.connections.pop(child.conn, None)
        elif (
            isinstance(event, http_events.ResponseProtocolError)
            and isinstance(child, http1.Http1Server)
            and child.request is not None
            and child.response is None
            and _status(event) == 502
            and (stream := self.streams.get(event.stream_id))
        ):
            response = self._front.make_error(stream.flow, event.message)
            body = b"" if child.request.method == "HEAD" else response.raw_content or b""
            for answer in (
                http_events.ResponseHeaders(event.stream_id, response, end_stream=False),
                http_events.ResponseData(event.stream_id, body),
                http_events.ResponseEndOfMessage(event.stream_id),
            ):
                yield from super().event_to_child(child, answer)
            if not child.request_done and child.request is not None:
                # The rest of the request is still on its way, and nobody wants it.
                yield commands.CloseConnection(self.context.client)
        else:
            yield from super().event_to_child(child, event)


class BoundedStream(HttpStream):
    """An `HttpStream` that passes a body on where it turns out to be too large to be kept."""

    def __init__(self, context: Context, stream_id: int, front: Front) -> None:
        super().__init__(context, stream_id)
        self._front = front

    def check_body_size(self, request: bool) -> layer.CommandGenerator[bool]:
        if (yield from super().check_body_size(request)):
            return True
        kept = len(self.request_body_buf)
        if request and kept > MAX_BODY and not self.flow.request.stream:
            # As mitmproxy does it for those of which that is known from the start.
            self._front.pass_on(self.flow)
            body = bytes(self.request_body_buf)
            self.request_body_buf.clear()
            self.flow.request.stream = True
            yield from self.start_request_stream()
            yield from self.handle_event(http_events.RequestData(self.stream_id, body))
        return False


def reverse_proxy(
    context: Context, data: bytes, front: Front, connection: ClientConnection | None
) -> layer.Layer | None:
    """The layers behind an HTTP client of a reverse proxy, or None to leave it to mitmproxy.

    `data` is what the client sent first. Its requests are read strictly where it has a
    `connection`. Who was asked before us may have chosen mitmproxy's own
    layers for HTTP: ours take their place.
    """
    mode = context.client.proxy_mode
    first, *chosen = context.layers
    at_start = isinstance(first, layers.modes.ReverseProxy) and all(map(_is_plain, chosen))
    if not at_start or not isinstance(mode, ReverseMode):
        return None
    if mode.scheme not in ("http", "https"):
        return None
    del context.layers[1:]
    stack = tunnel.LayerStack()
    if mode.scheme == "https":
        stack /= layers.ServerTLSLayer(context)
    if data[:1] == _HANDSHAKE:
        stack /= layers.ClientTLSLayer(context)
    if connection:
        stack /= FramingLayer(context, connection, front.longest)
    stack /= Gateway(context, front)
    return stack[0]


def _is_plain(chosen: layer.Layer) -> bool:
    """Whether a layer is what mitmproxy itself puts behind an HTTP client of a reverse proxy."""
    return type(chosen) in (HttpLayer, layers.ClientTLSLayer, layers.ServerTLSLayer)


def _status(event: http_events.ResponseProtocolError) -> Any:
    """mitmproxy 11 has plain numbers where 12 has codes with a status."""
    ask = getattr(event.code, "http_status_code", None)
    return ask() if ask else event.code
