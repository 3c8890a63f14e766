"""Requests to upstream, and its answers, as mitmproxy's flows have them, and back."""

from __future__ import annotations

import time
from functools import partial

from mitmproxy import http
from mitmproxy.connection import Client, Server
from mitmproxy.net.http.status_codes import RESPONSES

from sglang_cached_addon.wire.connection import Headers, Response
from sglang_cached_addon.wire.observing import Wrapped
from sglang_cached_addon.wire.outgoing import Request

CLIENT = ("sglang-cached", 0)
"""The address of the client of such flows, as in the filter `~src sglang-cached`."""

METADATA = "sglang_cached_asks"
"""Stands in the metadata of such flows, for scripts."""


def flow_of(client: Wrapped, asked: Request, comment: str, marker: str) -> http.HTTPFlow:
    """A flow for a request that is about to go out."""
    flow = http.HTTPFlow(Client(peername=CLIENT, sockname=CLIENT), Server(address=client.address))
    flow.live = True
    flow.server_conn.tls = client.is_https
    scheme = b"https" if client.is_https else b"http"
    now, (host, port) = time.time(), client.address
    flow.request = http.Request(
        host,
        port,
        asked.method.encode(),
        scheme,
        b"",
        asked.path.encode(),
        b"HTTP/1.1",
        tuple(asked.headers),
        asked.body,
        None,
        now,
        now,
    )
    flow.comment, flow.marked = comment, marker
    flow.metadata[METADATA] = True
    # mitmproxy lets go of what waits for a held flow when that is resumed, and not when it is
    # killed.
    flow.kill = partial(_kill, flow)  # type: ignore[method-assign]
    return flow


def _kill(flow: http.HTTPFlow) -> None:
    flow.resume()
    http.HTTPFlow.kill(flow)


def request_of(flow: http.HTTPFlow, client: Wrapped) -> Request:
    """What is to be sent by what a flow says; from now on, it says what goes out."""
    request = flow.request
    asked = Request(
        request.method, request.path, request.headers.fields, request.raw_content or b""
    )
    sent = client.request(asked)
    request.headers = http.Headers(sent.headers)
    request.timestamp_end = time.time()
    return sent


def leads_away(flow: http.HTTPFlow, client: Wrapped) -> bool:
    """Whether a flow says that its request goes to another server, where none goes; from now on, it
    says to which one it goes."""
    request = flow.request
    scheme = "https" if client.is_https else "http"
    is_elsewhere = (request.scheme, request.host, request.port) != (scheme, *client.address)
    data = request.data
    data.scheme, (data.host, data.port) = scheme.encode(), client.address
    return is_elsewhere


def response_of(status: int, headers: Headers, content: bytes | None) -> http.Response:
    """A response whose head has come now."""
    reason = RESPONSES.get(status, "").encode()
    fields = http.Headers(headers)
    return http.Response(b"HTTP/1.1", status, reason, fields, content, None, time.time(), None)


def is_stream(response: http.Response) -> bool:
    """Whether an answer is passed on as it comes."""
    media_type: str = response.headers.get("content-type", "")
    return media_type.partition(";")[0].strip().lower() == "text/event-stream"


def note_connection(flow: http.HTTPFlow, response: Response) -> None:
    """Notes the connection to upstream that an answer has come on."""
    server = flow.server_conn
    server.sockname, server.peername, since = response.ends
    server.timestamp_start = server.timestamp_tcp_setup = since
    if server.tls:
        server.timestamp_tls_setup = since
