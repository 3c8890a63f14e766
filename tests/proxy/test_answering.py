"""The heads of answers: upstream's fields, what the cache says, and how the body is framed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from sglang_cached_addon.core.outcome import NOTHING, Kind, Outcome
from sglang_cached_addon.proxy.answering import fields_of, head, lead_here, mark
from sglang_cached_addon.service.asking import Reply, Streamed
from sglang_cached_addon.service.findings import Hit

URL = "http://10.0.0.7:30000"
MISS = Outcome(Kind.MISS)
SAYS = ((b"Cache-Status", b"sglang-cached; fwd=miss; stored"), (b"X-Cache", b"MISS"))
HIT = Hit(b"{}", Outcome(Kind.HIT, oldest=1e12), NOTHING, "m")
ID = ((b"X-Request-Id", b"r1"),)
HIT_SAYS = (
    (b"Cache-Status", b"sglang-cached; hit"), (b"X-Cache", b"HIT"), (b"Age", b"0"), *ID,
)  # fmt: skip


def reply(*fields: tuple[bytes, bytes]) -> Reply:
    return Reply(200, fields, b"", MISS)


def test_hits() -> None:
    """A hit has the fields that SGLang gives, whole or in chunks."""
    json = (b"Content-Type", b"application/json")
    events = (b"Content-Type", b"text/event-stream; charset=utf-8")
    stream = replace(HIT, is_stream=True)
    for answer, size, wanted in (
        (HIT, 2, (json, (b"content-length", b"2"))),
        (stream, 2, (events, (b"content-length", b"2"))),
        (stream, None, (events, (b"Transfer-Encoding", b"chunked"))),
    ):
        assert fields_of(answer, URL, size, b"r1") == (*wanted, *HIT_SAYS), answer


def test_framing() -> None:
    """The length of the body replaces what upstream has said of its own, in its place."""
    given = ((b"server", b"x"), (b"Content-Length", b"99"), (b"b", b"1"), (b"content-length", b"9"))
    sized = ((b"server", b"x"), (b"Content-Length", b"5"), (b"b", b"1"))
    assert fields_of(reply(*given), URL, 5, b"r1") == (*sized, *SAYS, *ID)
    stream = Streamed(given, None, MISS, lambda is_complete: MISS, ExitStack())  # type: ignore[arg-type]
    assert fields_of(stream, URL, None, b"r1") == (
        (b"server", b"x"),
        (b"b", b"1"),
        (b"Content-Type", b"text/event-stream; charset=utf-8"),
        (b"Transfer-Encoding", b"chunked"),
        *SAYS,
        *ID,
    )


def test_what_leads_to_upstream() -> None:
    """It leads through the proxy; what leads elsewhere stays, whatever its bytes."""
    for value, wanted in (
        (b"http://10.0.0.7:30000/generate", b"/generate"),
        (b"http://other/x", b"http://other/x"),
        (b"/\xff", b"/\xff"),
    ):
        fields = fields_of(reply((b"location", value)), URL, 0, b"r1")
        assert fields[0] == (b"location", wanted)
    both = ((b"Location", URL.encode() + b"/a"), (b"Content-Location", b"http://b/"))
    assert lead_here(both, URL) == ((b"Location", b"/a"), both[1])


def test_caches_behind() -> None:
    """What other caches say, which may be any bytes, stays in the list before ours; fields of ours
    that they have are replaced."""
    given = (
        (b"cache-status", b"a; \xff"), (b"x-cache", b"HIT"), (b"Cache-Status", b"b"),
        (b"x-request-id", b"theirs"),
    )  # fmt: skip
    assert mark(given, MISS, b"r1") == (
        (b"cache-status", b"a; \xff, b, sglang-cached; fwd=miss; stored"),
        (b"x-cache", b"MISS"),
        (b"x-request-id", b"r1"),
    )


def test_head() -> None:
    """A status has its phrase, and an unknown one none."""
    assert head(200, ((b"a", b"1"),)) == b"HTTP/1.1 200 OK\r\na: 1\r\n\r\n"
    assert head(404, ()) == b"HTTP/1.1 404 Not Found\r\n\r\n"
    assert head(799, ()) == b"HTTP/1.1 799 \r\n\r\n"
