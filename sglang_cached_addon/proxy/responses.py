"""Answers of ours as mitmproxy's responses."""

from __future__ import annotations

from mitmproxy import http

from sglang_cached_addon.proxy import answering
from sglang_cached_addon.service.asking import Reply, Streamed
from sglang_cached_addon.service.findings import Hit, error_body
from sglang_cached_addon.wire import location


def whole(answer: Hit | Reply, body: bytes, upstream: str) -> http.Response:
    """An answer in one piece."""
    response = http.Response.make(answer.status if isinstance(answer, Reply) else 200, body)
    response.headers = http.Headers(answering.fields_of(answer, upstream, len(body)))
    return response


def head(answer: Hit | Reply | Streamed, upstream: str) -> http.Response:
    """The head of an answer in chunks."""
    response = http.Response.make(200, b"")
    response.headers = http.Headers(answering.fields_of(answer, upstream, None))
    return response


def json(status: int, body: bytes, headers: dict[str, str] | None = None) -> http.Response:
    return http.Response.make(status, body, {"Content-Type": "application/json", **(headers or {})})


def denied(path: str) -> http.Response:
    """What a request gets that would have to go upstream, and must not."""
    why = "--mode offline, or only-if-cached"
    text = f"sglang-cached: {path} would have to go upstream, and must not ({why})"
    return json(504, error_body(504, "GatewayTimeout", text))


def lead_here(response: http.Response, upstream: str) -> None:
    """What leads to upstream leads through the proxy."""
    for name in location.FIELDS:
        if value := response.headers.get(name):
            response.headers[name] = location.through_proxy(value, upstream)
