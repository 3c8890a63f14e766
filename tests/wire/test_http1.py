"""Which request heads the fast lane understands, and that it understands no other."""

from __future__ import annotations

import pickle

from sglang_cached_addon.core import admission
from sglang_cached_addon.core.outcome import hit_status
from sglang_cached_addon.core.policy import MAX_BODY
from sglang_cached_addon.wire.http1 import (
    MAX_HEAD,
    Head,
    HeadReader,
    NoHead,
    chunked,
    hit,
    unchunked,
)
from tests.tables import each

ROUTES = [("POST", "/generate"), ("PUT", "/generate"), ("POST", "/v1/chat/completions")]
LINE = b"POST /generate HTTP/1.1"
PLAIN = (b"Host: x", b"Content-Type: application/json", b"Content-Length: 2")


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def read(data: bytes) -> Head | NoHead:
    return HeadReader(ROUTES).read(data)


UNDERSTOOD = {
    "plain": (head(LINE, *PLAIN), ("POST", False)),
    "lower case": (
        head(LINE, *(f.lower() for f in PLAIN)),
        ("POST", False),
    ),
    "PUT": (head(b"PUT /generate HTTP/1.1", *PLAIN), ("PUT", False)),
    "other fields": (
        head(LINE, *PLAIN, b"X-A: 1", b"X-A: 2", b"Proxy-Authorization: a"),
        ("POST", False),
    ),
    "charset": (
        head(LINE, b"Host: x", b"Content-Type: application/json; charset=utf-8", PLAIN[2]),
        ("POST", False),
    ),
    "no space": (
        head(LINE, b"Host:x", b"Content-Type:application/json", b"Content-Length:2"),
        ("POST", False),
    ),
    "keep-alive": (
        head(LINE, *PLAIN, b"Connection: Keep-Alive"),
        ("POST", False),
    ),
    "close": (head(LINE, *PLAIN, b"Connection: close"), ("POST", True)),
    "empty value": (head(LINE, *PLAIN, b"X-Empty:"), ("POST", False)),
    "unknown directives": (
        head(LINE, *PLAIN, b"Cache-Control: no-transform, max-stale=9", b"Pragma: no-cache"),
        ("POST", False),
    ),
    "no directives": (
        head(LINE, *PLAIN, b"Cache-Control:", b"X-Cache-Control: x"),
        ("POST", False),
    ),
}


@each(("data", "wanted"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_understood(data: bytes, wanted: tuple[str, bool]) -> None:
    """A plain head is read, with any body behind it, however often it comes."""
    reader = HeadReader(ROUTES)
    method, closes = wanted
    for behind in (b"", b"{}", b"{}POST /generate HTTP/1.1\r\n"):
        found = reader.read(data + behind)
        assert isinstance(found, Head)
        assert found == Head(method, "/generate", len(data), 2, closes)


@each("data", [data for data, _ in UNDERSTOOD.values()], ids=UNDERSTOOD)
def test_byte_by_byte(data: bytes) -> None:
    """Every beginning of a plain head is waited for."""
    assert all(read(data[:end]) is NoHead.PARTIAL for end in range(1, len(data)))


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
    "no-store": head(LINE, *PLAIN, b"Cache-Control: no-store"),
    "no-cache": head(LINE, *PLAIN, b"cache-control: No-Cache"),
    "max-age": head(LINE, *PLAIN, b"Cache-Control: max-age=60"),
    "only-if-cached": head(LINE, *PLAIN, b"Cache-Control: only-if-cached"),
    "a directive among others": head(LINE, *PLAIN, b"Cache-Control: x, no-transform,no-store"),
    "X-Cache-Control": head(LINE, *PLAIN, b"X-Cache-Control: no-store"),
    "the other one": head(LINE, *PLAIN, b"Cache-Control: x", b"X-Cache-Control: no-cache"),
    "two fields of directives": head(LINE, *PLAIN, b"Cache-Control: x", b"Cache-Control: y"),
    "two of the other": head(LINE, *PLAIN, b"X-Cache-Control: x", b"X-Cache-Control: y"),
    "bare LFs": b"POST /generate HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}\r\n\r\n",
}


@each("data", FOREIGN.values(), ids=FOREIGN)
def test_foreign(data: bytes) -> None:
    """What is not plain is left to mitmproxy, also the second time."""
    reader = HeadReader(ROUTES)
    assert reader.read(data) is NoHead.FOREIGN
    assert reader.read(data) is NoHead.FOREIGN


@each("data", FOREIGN.values(), ids=FOREIGN)
def test_foreign_byte_by_byte(data: bytes) -> None:
    """No beginning of a foreign head is taken for one of ours, and none is waited for for ever."""
    kinds = [read(data[:end]) for end in range(1, len(data) + 1)]
    assert all(isinstance(kind, NoHead) for kind in kinds)
    assert kinds[-1] is NoHead.FOREIGN


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


@each("name", CREDENTIALS)
def test_credential(name: str) -> None:
    """A client would be taken for another one, or the fast lane know it by another name than the
    ordinary way does."""
    found = read(head(LINE, *PLAIN, *CREDENTIALS[name]))
    assert isinstance(found, Head)
    pairs = [line.split(b":", 1) for line in CREDENTIALS[name]]
    fields = {field.lower(): value.strip() for field, value in pairs}
    assert found.credential == admission.credential(fields)
    assert len(found.credential) == (0 if name == "none" else 32)
    for other, lines in CREDENTIALS.items():
        same = read(head(LINE, *PLAIN, *lines))
        assert isinstance(same, Head)
        assert (same.credential == found.credential) is (other == name)


@each("key", [b"", bytes(range(32))])
def test_hit(key: bytes) -> None:
    """A hit is a whole HTTP message."""
    status = hit_status(key)
    assert hit(b"{}", 7, status) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 2\r\n"
        b"Cache-Status: " + status + b"\r\nX-Cache: HIT\r\nAge: 7\r\n\r\n{}"
    )


def test_stream_hit() -> None:
    """As above, of a stream."""
    body = chunked([b"data: 100%\n\n", b"data: [DONE]\n\n"])
    assert hit(body, 7, hit_status(b""), is_stream=True) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        b"Transfer-Encoding: chunked\r\nCache-Status: sglang-cached; hit\r\nX-Cache: HIT\r\n"
        b"Age: 7\r\n\r\nc\r\ndata: 100%\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    )


@each("events", [[], [b"a"], [b"a" * 15, b"b" * 16, b"c" * 70_000], [b"0\r\n\r\n", b"\r\n"]])
def test_chunks(events: list[bytes]) -> None:
    """A client would take something else for an event."""
    assert unchunked(chunked(events)) == events


def test_credentials_are_not_kept() -> None:
    """Keys of clients would be in the memory for as long as the proxy runs."""
    reader = HeadReader(ROUTES)
    found = reader.read(head(LINE, *PLAIN, b"Authorization: Bearer s3cret"))
    assert isinstance(found, Head)
    assert found.credential
    assert b"s3cret" not in pickle.dumps([vars(reader), found])
