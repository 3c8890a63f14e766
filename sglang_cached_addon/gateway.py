"""mitmproxy's HTTP layer, with our own answer where upstream gives none, and hooks in place.

mitmproxy tells a client in HTML that the upstream cannot be reached, and closes the
connection; API clients get JSON here, and keep theirs. And where a hook can be run at once,
its flow goes on at once. What is overridden is where `HttpLayer` receives an event, and
where it hands one to the layer of a connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mitmproxy import http
from mitmproxy.proxy import commands, events, layer, layers, tunnel
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._events import (
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Server
from mitmproxy.proxy.mode_specs import ReverseMode

MakeError = Callable[[http.HTTPFlow, str], http.Response]
"""The answer to a request that upstream did not answer, from the flow and mitmproxy's message."""

MakeLane = Callable[[Context], layer.Layer]
"""Makes the layer that stands before the HTTP layer."""


RunHook = Callable[[commands.StartHook], bool]
"""Runs a hook at once; False if it has to go mitmproxy's way."""


class Gateway(HttpLayer):
    """An `HttpLayer` whose 502 is made by `make_error`, and whose hooks may be run in place."""

    def __init__(
        self, context: Context, make_error: MakeError, run_hook: RunHook | None = None
    ) -> None:
        super().__init__(context, HTTPMode.transparent)
        self._make_error = make_error
        self._run_hook = run_hook

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if self._run_hook is None:
            yield from super().handle_event(event)
            return
        # A hook is completed when the event that led to it is done with: layers are not
        # made to be entered again while they work.
        waiting = [event]
        for event in waiting:
            for command in super().handle_event(event):
                if isinstance(command, commands.StartHook) and self._run_hook(command):
                    waiting.append(events.HookCompleted(command))
                else:
                    yield command

    def event_to_child(
        self, child: layer.Layer, event: events.Event
    ) -> layer.CommandGenerator[None]:
        if (
            isinstance(event, ResponseProtocolError)
            and isinstance(child, Http1Server)
            and child.request is not None
            and child.response is None
            and _status(event) == 502
            and (stream := self.streams.get(event.stream_id))
        ):
            response = self._make_error(stream.flow, event.message)
            body = b"" if child.request.method == "HEAD" else response.raw_content or b""
            for answer in (
                ResponseHeaders(event.stream_id, response, end_stream=False),
                ResponseData(event.stream_id, body),
                ResponseEndOfMessage(event.stream_id),
            ):
                yield from super().event_to_child(child, answer)
            if not child.request_done and child.request is not None:
                # The rest of the request is still on its way, and nobody wants it.
                yield commands.CloseConnection(self.context.client)
        else:
            yield from super().event_to_child(child, event)


def reverse_proxy(
    context: Context,
    data: bytes,
    make_error: MakeError,
    run_hook: RunHook | None = None,
    lane: MakeLane | None = None,
) -> layer.Layer | None:
    """The layers behind a plain HTTP client of a reverse proxy, or None to leave it to mitmproxy.

    `data` is what the client sent first; TLS from clients is mitmproxy's own business.
    """
    mode = context.client.proxy_mode
    at_start = len(context.layers) == 1 and isinstance(context.layers[0], layers.modes.ReverseProxy)
    if not at_start or not isinstance(mode, ReverseMode) or data[:1] == b"\x16":
        return None
    if mode.scheme not in ("http", "https"):
        return None
    stack = tunnel.LayerStack()
    if mode.scheme == "https":
        stack /= layers.ServerTLSLayer(context)
    if lane:
        stack /= lane(context)
    stack /= Gateway(context, make_error, run_hook)
    return stack[0]


def _status(event: ResponseProtocolError) -> Any:
    """mitmproxy 11 has plain numbers where 12 has codes with a status."""
    ask = getattr(event.code, "http_status_code", None)
    return ask() if ask else event.code
