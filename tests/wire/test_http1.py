"""Which request heads the fast lane understands, and that it understands no other."""

from __future__ import annotations

import pickle

from sglang_cached_addon.core import admission
from sglang_cached_addon.core.directives import Directives
from sglang_cached_addon.core.outcome import hit_status
from sglang_cached_addon.core.policy import MAX_BODY
from sglang_cached_addon.wire.http1 import (
    MAX_HEAD,
    HeadReader,
    NoHead,
    PlainHead,
    chunked,
    hit,
    hit_head,
    unchunked,
)
from tests.tables import each

ROUTES = [("POST", "/generate"), ("PUT", "/generate"), ("POST", "/v1/chat/completions")]
LINE = b"POST /generate HTTP/1.1"
PLAIN = (b"Host: x", b"Content-Type: application/json", b"Content-Length: 2")


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def read(data: bytes) -> PlainHead | NoHead:
    return HeadReader(ROUTES).read(data)


UNDERSTOOD = {
    "plain": head(LINE, *PLAIN),
    "lower case": head(LINE, *(field.lower() for field in PLAIN)),
    "PUT": head(b"PUT /generate HTTP/1.1", *PLAIN),
    "other fields": head(LINE, *PLAIN, b"X-A: 1", b"X-A: 2", b"Proxy-Authorization: a"),
    "charset": head(LINE, PLAIN[0], b"Content-Type: application/json; charset=utf-8", PLAIN[2]),
    "no space": head(LINE, *(field.replace(b" ", b"") for field in PLAIN)),
    "keep-alive": head(LINE, *PLAIN, b"Connection: Keep-Alive"),
    "close": head(LINE, *PLAIN, b"Connection: close"),
    "empty value": head(LINE, *PLAIN, b"X-Empty:"),
    "unknown directives": head(
        LINE, *PLAIN, b"Cache-Control: no-transform, max-stale=9", b"Pragma: no-cache"
    ),
    "no directives": head(LINE, *PLAIN, b"Cache-Control:", b"X-Cache-Control: x"),
}


def test_understood() -> None:
    """A plain head is read, with any body behind it, however often it comes; every beginning of it
    is waited for."""
    reader = HeadReader(ROUTES)
    for name, data in UNDERSTOOD.items():
        for behind in (b"", b"{}", b"{}POST /generate HTTP/1.1\r\n"):
            found = reader.read(data + behind)
            assert isinstance(found, PlainHead), name
            call, method = found.call, "PUT" if name == "PUT" else "POST"
            assert (call.method, call.path, call.refusal) == (method, "/generate", None), name
            assert (found.size, found.length, found.closes) == (len(data), 2, name == "close"), name
        assert all(read(data[:end]) is NoHead.PARTIAL for end in range(1, len(data))), name


DIRECTIVES = {
    Directives(): ([b"Cache-Control: no-transform"], [b"Cache-Control: x", b"Cache-Control: y"]),
    Directives(no_store=True): ([b"Cache-Control: x, no-store"], [b"X-Cache-Control: no-store"]),
    Directives(no_cache=True): ([b"Cache-Control: x", b"X-Cache-Control: No-Cache"],),
    Directives(max_age=60): ([b"cache-control: max-age=60"],),
    Directives(only_if_cached=True): ([b"X-Cache-Control: x", b"X-Cache-Control: only-if-cached"],),
}


def test_directives() -> None:
    """What a client asks of the cache is read with its head."""
    for wanted, heads in DIRECTIVES.items():
        for lines in heads:
            found = read(head(LINE, *PLAIN, *lines))
            assert isinstance(found, PlainHead), lines
            assert found.call.directives == wanted, lines


FOREIGN = {
    "another path": head(b"POST /v1/models HTTP/1.1", *PLAIN),
    "a longer path": head(b"POST /generate2 HTTP/1.1", *PLAIN),
    "a query": head(b"POST /generate?x=1 HTTP/1.1", *PLAIN),
    "absolute form": head(b"POST http://x/generate HTTP/1.1", *PLAIN),
    "an encoded path": head(b"POST /gener%61te HTTP/1.1", *PLAIN),
    "another method": head(b"GET /generate HTTP/1.1", *PLAIN),
    "a method in lower case": head(b"post /generate HTTP/1.1", *PLAIN),
    "HTTP/1.0": head(b"POST /generate HTTP/1.0", *PLAIN),
    "HTTP/2": head(b"PRI * HTTP/2.0"),
    "two spaces": head(b"POST  /generate HTTP/1.1", *PLAIN),
    "a space behind": head(b"POST /generate HTTP/1.1 ", *PLAIN),
    "an empty line before": b"\r\n" + head(LINE, *PLAIN),
    "no host": head(LINE, *PLAIN[1:]),
    "two hosts": head(LINE, *PLAIN, b"Host: y"),
    "no length": head(LINE, *PLAIN[:2]),
    "two lengths": head(LINE, *PLAIN, b"Content-Length: 2"),
    "contradictory lengths": head(LINE, *PLAIN, b"Content-Length: 3"),
    "a list of lengths": head(LINE, *PLAIN[:2], b"Content-Length: 2, 2"),
    "a signed length": head(LINE, *PLAIN[:2], b"Content-Length: +2"),
    "a negative length": head(LINE, *PLAIN[:2], b"Content-Length: -2"),
    "a hexadecimal length": head(LINE, *PLAIN[:2], b"Content-Length: 0x2"),
    "an underscore": head(LINE, *PLAIN[:2], b"Content-Length: 1_0"),
    "Arabic digits": head(LINE, *PLAIN[:2], "Content-Length: ٢".encode()),
    "too large": head(LINE, *PLAIN[:2], b"Content-Length: %d" % (MAX_BODY + 1)),
    "chunked": head(LINE, *PLAIN, b"Transfer-Encoding: chunked"),
    "chunked, hidden": head(LINE, *PLAIN, b"Transfer-Encoding: \x0bchunked"),
    "expect": head(LINE, *PLAIN, b"Expect: 100-continue"),
    "upgrade": head(LINE, *PLAIN, b"Connection: Upgrade", b"Upgrade: websocket"),
    "upgrade alone": head(LINE, *PLAIN, b"Upgrade: h2c"),
    "te": head(LINE, *PLAIN, b"TE: trailers"),
    "trailer": head(LINE, *PLAIN, b"Trailer: X"),
    "connection names a field": head(LINE, *PLAIN, b"Connection: keep-alive, x-a"),
    "two connections": head(LINE, *PLAIN, b"Connection: close", b"Connection: keep-alive"),
    "obs-fold": head(LINE, *PLAIN, b"X-A: 1", b" 2"),
    "a fold by tab": head(LINE, *PLAIN, b"X-A: 1", b"\t2"),
    "a space before the colon": head(LINE, *PLAIN, b"X-A : 1"),
    "no colon": head(LINE, *PLAIN, b"X-A"),
    "no name": head(LINE, *PLAIN, b": 1"),
    "a bare LF": head(LINE, *PLAIN, b"X-A: 1\nX-B: 2"),
    "bare CR": head(LINE, *PLAIN, b"X-A: 1\rX-B: 2"),
    "NUL": head(LINE, *PLAIN, b"X-A: \x00"),
    "a control character": head(LINE, *PLAIN, b"X-A: \x01"),
    "a name beyond ASCII": head(LINE, *PLAIN, "X-Ä: 1".encode()),
    "huge": head(LINE, *PLAIN, b"X-A: " + b"a" * MAX_HEAD),
    "text": head(LINE, b"Host: x", b"Content-Type: text/plain", PLAIN[2]),
    "no type": head(LINE, b"Host: x", PLAIN[2]),
    "two types": head(LINE, *PLAIN, b"Content-Type: application/json"),
    "gzip": head(LINE, *PLAIN, b"Content-Encoding: gzip"),
    "origin": head(LINE, *PLAIN, b"Origin: http://x"),
    "two credentials": head(LINE, *PLAIN, b"Authorization: a", b"Authorization: b"),
    "one credential twice": head(LINE, *PLAIN, b"Authorization: a", b"authorization: a"),
    "two keys": head(LINE, *PLAIN, b"X-API-Key: a", b"x-api-key: b"),
    "two of Azure's": head(LINE, *PLAIN, b"Api-Key: a", b"Api-Key: b"),
    "two tokens": head(LINE, *PLAIN, b"X-Auth-Token: a", b"X-Auth-Token: b"),
    "bare LFs": b"POST /generate HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}\r\n\r\n",
}


def test_foreign() -> None:
    """What is not plain is left to mitmproxy, also the second time; no beginning of it is taken
    for a head of ours."""
    for name, data in FOREIGN.items():
        reader = HeadReader(ROUTES)
        assert reader.read(data) is NoHead.FOREIGN, name
        assert reader.read(data) is NoHead.FOREIGN, name
        beginnings = [data[:end] for end in range(1, len(data), 1 + len(data) // 1000)]
        assert all(isinstance(read(beginning), NoHead) for beginning in beginnings), name


def test_an_endless_head() -> None:
    """A head without an end is handed over when it is too long."""
    assert read(LINE + b"\r\nX-A: " + b"a" * MAX_HEAD) is NoHead.FOREIGN


CREDENTIALS: dict[str, tuple[bytes, ...]] = {
    "none": (),
    "a bearer": (b"Authorization: Bearer x",),
    "another": (b"Authorization: Bearer y",),
    "as a key": (b"X-API-Key: Bearer x",),
    "as Azure's": (b"Api-Key: Bearer x",),
    "a token": (b"X-Auth-Token: Bearer x",),
    "two kinds": (b"Authorization: Bearer x", b"X-Auth-Token: a=1"),
    "an empty one": (b"Authorization:",),
}


def test_credential() -> None:
    """No client is taken for another one, and the lane knows each as the hooks do."""
    seen = {}
    for name, lines in CREDENTIALS.items():
        found = read(head(LINE, *PLAIN, *lines))
        assert isinstance(found, PlainHead)
        pairs = [line.split(b":", 1) for line in lines]
        fields = {field.lower(): value.strip() for field, value in pairs}
        assert found.call.credential == admission.credential(fields), name
        assert len(found.call.credential) == (0 if name == "none" else 32)
        seen[found.call.credential] = name
    assert len(seen) == len(CREDENTIALS)


@each("key", [b"", bytes(range(32))])
def test_hit(key: bytes) -> None:
    """A hit is a whole HTTP message."""
    status = hit_status(key)
    for places, line in ((b"", b""), (b"0,3-4", b"X-Cache-Sample: 0,3-4\r\n")):
        assert hit(hit_head(2, status, places, is_stream=False), 7, b"r1", b"{}") == (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 2\r\n"
            b"Cache-Status: "
            + status
            + b"\r\nX-Cache: HIT\r\n"
            + line
            + b"Age: 7\r\nX-Request-Id: r1\r\n\r\n{}"
        )


def test_stream_hit() -> None:
    """As above, of a stream."""
    body = chunked([b"data: 100%\n\n", b"data: [DONE]\n\n"])
    begins = hit_head(len(body), hit_status(b""), b"1", is_stream=True)
    assert hit(begins, 7, b"r1", body) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        b"Transfer-Encoding: chunked\r\nCache-Status: sglang-cached; hit\r\nX-Cache: HIT\r\n"
        b"X-Cache-Sample: 1\r\nAge: 7\r\nX-Request-Id: r1\r\n\r\n"
        b"c\r\ndata: 100%\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    )


@each("events", [[], [b"a"], [b"a" * 15, b"b" * 16, b"c" * 70_000], [b"0\r\n\r\n", b"\r\n"]])
def test_chunks(events: list[bytes]) -> None:
    """Each event is a chunk of its own."""
    assert unchunked(chunked(events)) == events


def test_credentials_are_not_kept() -> None:
    """No bytes of a head are kept."""
    reader = HeadReader(ROUTES)
    found = reader.read(head(LINE, *PLAIN, b"Authorization: Bearer s3cret"))
    assert isinstance(found, PlainHead)
    assert found.call.credential
    assert b"s3cret" not in pickle.dumps([vars(reader), found])
