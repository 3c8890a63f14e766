"""Answers of ours as mitmproxy's responses."""

from __future__ import annotations

from mitmproxy import http

from sglang_cached_addon.proxy import answering
from sglang_cached_addon.service.asking import Reply, Streamed
from sglang_cached_addon.service.error_bodies import error_body
from sglang_cached_addon.service.findings import Hit


def answered(
    answer: Hit | Reply | Streamed, upstream: str, request_id: bytes, body: bytes | None = None
) -> http.Response:
    """An answer; without a `body`, its head alone: what follows comes in chunks."""
    response = http.Response.make(answering.status_of(answer), body or b"")
    size = None if body is None else len(body)
    response.headers = http.Headers(answering.fields_of(answer, upstream, size, request_id))
    return response


def json(status: int, body: bytes, headers: dict[str, str] | None = None) -> http.Response:
    return http.Response.make(status, body, {"Content-Type": "application/json", **(headers or {})})


def bad_request(why: str) -> http.Response:
    """What a request gets that we cannot make sense of."""
    return json(400, error_body(400, "BadRequest", why))


def denied(path: str) -> http.Response:
    """What a request gets that would have to go upstream, and must not."""
    why = "--mode offline, or only-if-cached"
    text = f"sglang-cached: {path} would have to go upstream, and must not ({why})"
    return json(504, error_body(504, "GatewayTimeout", text))
