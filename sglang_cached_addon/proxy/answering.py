"""The heads of answers, the same in the fast lane and through the hooks.

Makes header fields of the values of an answer, and bytes of these; `Age` is told by the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from mitmproxy.net.http.status_codes import RESPONSES

from sglang_cached_addon.core.call_head import Fields
from sglang_cached_addon.core.outcome import Outcome
from sglang_cached_addon.service.asking import Reply, Streamed
from sglang_cached_addon.service.findings import EVENTS, JSON, Hit
from sglang_cached_addon.wire import location


def fields_of(
    answer: Hit | Reply | Streamed, upstream: str, size: int | None, request_id: bytes
) -> Fields:
    """The header fields of an answer: upstream's, if it has any, and what the cache says. `size`
    is the number of bytes of the body; None: it is sent in chunks. What leads to `upstream`, which
    is scheme://host:port, leads through the proxy."""
    if isinstance(answer, Hit):
        fields = list(EVENTS if answer.is_stream else JSON)
    else:
        fields = list(answer.headers)
    if size is None:
        fields = [field for field in fields if field[0].lower() != b"content-length"]
        if not any(name.lower() == b"content-type" for name, _ in fields):
            fields += EVENTS
        _set(fields, b"Transfer-Encoding", b"chunked")
    else:
        _set(fields, b"content-length", b"%d" % size)
    return mark(lead_here(fields, upstream), answer.outcome, request_id)


def status_of(answer: Hit | Reply | Streamed) -> int:
    return answer.status if isinstance(answer, Reply) else 200


def lead_here(fields: Iterable[tuple[bytes, bytes]], upstream: str) -> Fields:
    """Header fields of which those that lead to upstream lead through the proxy."""
    return tuple(
        (name, location.through_proxy(value.decode("latin-1"), upstream).encode("latin-1"))
        if name.lower() in location.FIELDS
        else (name, value)
        for name, value in fields
    )


def mark(fields: Iterable[tuple[bytes, bytes]], outcome: Outcome, request_id: bytes) -> Fields:
    """Header fields with what the cache says of an answer, and with the request's id."""
    marked = list(fields)
    for name, value in outcome.headers(time.time()):
        values = [value.encode()]
        if name == "Cache-Status":
            # RFC 9211 §2: a list, the cache nearest to the origin first.
            values = [v for n, v in marked if n.lower() == b"cache-status"] + values
        _set(marked, name.encode(), b", ".join(values))
    _set(marked, b"X-Request-Id", request_id)
    return tuple(marked)


def _set(fields: list[tuple[bytes, bytes]], name: bytes, value: bytes) -> None:
    """Replaces what there is of a field where its first line is, or adds it."""
    places = [at for at, (other, _) in enumerate(fields) if other.lower() == name.lower()]
    if not places:
        fields.append((name, value))
        return
    fields[places[0]] = (fields[places[0]][0], value)
    for at in reversed(places[1:]):
        del fields[at]


def head(status: int, fields: Fields) -> bytes:
    """A status line and header fields, as mitmproxy writes them."""
    lines = [b"%b: %b\r\n" % field for field in fields]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (
        status,
        RESPONSES.get(status, "").encode(),
        b"".join(lines),
    )
