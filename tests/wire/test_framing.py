"""Where requests begin and end."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from sglang_cached_addon.wire.chunks import MAX_LINE, Chunks
from sglang_cached_addon.wire.framing import Phase, Requests
from sglang_cached_addon.wire.heads import MAX_FIELDS, MAX_HEAD, FramingError
from tests.tables import each

GET, LINE = b"GET / HTTP/1.1", b"POST /generate HTTP/1.1"


CHUNKED = (b"Host: x", b"Transfer-Encoding: chunked")


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def in_chunks(coded: bytes) -> bytes:
    return head(LINE, *CHUNKED) + coded


PLAIN = {
    "no body": head(GET, b"Host: x"),
    "HTTP/1.0": head(b"GET / HTTP/1.0"),
    "a length": head(LINE, b"Host: x", b"Content-Length: 2") + b"{}",
    "a body like a request": head(LINE, b"Host: x", b"Content-Length: 16") + b"GET / HTTP/1.1\r\n",
    "any target": head(b"GET /p?q#% HTTP/1.1", b"Host: x"),
    "a whole URL": head(b"GET http://h:1/p?q HTTP/1.1", b"Host: x"),
    "any token": head(b"MY-METHOD * HTTP/1.1", b"Host: x", b"a!#$%&'*+-.^_`|~: 1"),
    "tabs and high bytes": head(GET, b"Host:\tx\t", b"A: \xff\t\x80 "),
    "no values": head(GET, b"Host:", b"A:", b"B: "),
    "WebSocket": head(GET, b"Host: x", b"Connection: upgrade", b"Upgrade: websocket"),
    "chunks": in_chunks(b"2\r\n{}\r\n0\r\n\r\n"),
    "no chunks": in_chunks(b"0\r\n\r\n"),
}
"""Requests that go on byte for byte."""


CHANGED = {
    "empty lines first": (b"\r\n\r\n" + PLAIN["no body"], PLAIN["no body"]),
    "several chunks": (in_chunks(b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), PLAIN["chunks"]),
    "chunk extensions": (in_chunks(b'02;a="b" ;c\r\n{}\r\n0 ;d\r\n\r\n'), PLAIN["chunks"]),
    "trailers": (in_chunks(b"2\r\n{}\r\n0\r\nA: 1\r\nContent-Length: 7\r\n\r\n"), PLAIN["chunks"]),
    "an upgrade to h2c": (
        head(
            GET,
            b"Host: x",
            b"Connection: Upgrade, HTTP2-Settings, close",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAAA",
        ),
        head(GET, b"Host: x", b"Connection: close"),
    ),
    "one of two upgrades": (
        head(GET, b"Host: x", b"Connection: upgrade", b"Upgrade: h2c, websocket"),
        head(GET, b"Host: x"),
    ),
    "a loud close": (
        head(GET, b"Host: x", b"Connection: Close"),
        head(GET, b"Host: x", b"Connection: close"),
    ),
}
"""Requests that mean the same and go on in plainer words."""


UNDERSTOOD = {**{name: (data, data) for name, data in PLAIN.items()}, **CHANGED}


def feed(data: bytes, size: int) -> tuple[bytes, Requests]:
    """What comes of the first request in pieces of a size."""
    requests, out = Requests(), b""
    for at in range(0, len(data), size):
        out += requests.receive(data[at : at + size])
    return out, requests


@each(("data", "wanted"), UNDERSTOOD.values(), ids=UNDERSTOOD)
@each("size", [1, 2, 7, 1 << 20])
def test_understood(data: bytes, wanted: bytes, size: int) -> None:
    """A request goes on as one that everybody reads alike, in whatever pieces it comes."""
    out, requests = feed(data, size)
    assert requests.phase is Phase.OVER
    assert not requests.held
    if size > len(data):
        assert out == wanted
    assert unchunked(out) == unchunked(wanted)


def unchunked(data: bytes) -> bytes:
    """Without the sizes of chunks, which are as the bytes have come."""
    start, _, body = data.partition(b"\r\n\r\n")
    if b"chunked" not in start:
        return data
    buffer = bytearray(body)
    return start + b"".join(Chunks().read(buffer)) + bytes(buffer)


@each("size", [1, 3, 1 << 20])
def test_one_after_the_other(size: int) -> None:
    """A request waits until the one before it is over."""
    every = list(UNDERSTOOD.values())
    data = b"".join(before for before, _ in every) + b"GET"
    out, requests = feed(data, size)
    outs = [out]
    for _ in every:
        assert requests.phase is Phase.OVER
        outs.append(requests.next())
    assert requests.phase is Phase.HEAD
    assert requests.held == 3
    assert outs.pop() == b""
    assert [unchunked(out) for out in outs] == [unchunked(after) for _, after in every]


def test_no_request_any_more() -> None:
    """What waits is given when it is not HTTP any more."""
    out, requests = feed(PLAIN["WebSocket"] + b"\x81\x00", 1 << 20)
    assert out == PLAIN["WebSocket"]
    assert requests.release() == b"\x81\x00"
    assert not requests.held


REFUSED = {
    "a bare LF": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "CRLF and LF mixed": (head(GET, b"Host: x\nA: 1"), 400),
    "LF after CRLF": (b"GET / HTTP/1.1\r\nHost: x\r\n\nA: 1\r\n\r\n", 400),
    "a bare CR": (head(GET, b"Host: x", b"A: 1\rB: 2"), 400),
    "two CRs": (head(GET, b"Host: x\r"), 400),
    "NUL": (head(GET, b"Host: x", b"A: \x00"), 400),
    "a line that goes on": (head(GET, b"Host: x", b" A: 1"), 400),
    "space before the colon": (head(GET, b"Host: x", b"Content-Length : 5"), 400),
    "no colon": (head(GET, b"Host: x", b"A"), 400),
    "no name": (head(GET, b"Host: x", b": 1"), 400),
    "no words": (head(b"hello", b"Host: x"), 400),
    "two spaces": (head(b"GET  / HTTP/1.1", b"Host: x"), 400),
    "a tab": (head(b"GET\t/ HTTP/1.1", b"Host: x"), 400),
    "a space in the target": (head(b"GET /a b HTTP/1.1", b"Host: x"), 400),
    "high bytes in the target": (head(b"GET /\xff HTTP/1.1", b"Host: x"), 400),
    "no path": (head(b"GET hello HTTP/1.1", b"Host: x"), 400),
    "another scheme": (head(b"GET file:///etc HTTP/1.1", b"Host: x"), 400),
    "HTTP/0.9": (head(b"GET /", b"Host: x"), 400),
    "HTTP/2": (head(b"PRI * HTTP/2.0") + b"SM\r\n\r\n", 505),
    "HTTP/1.2": (head(b"GET / HTTP/1.2", b"Host: x"), 505),
    "CONNECT": (head(b"CONNECT x:80 HTTP/1.1", b"Host: x"), 400),
    "no host": (head(GET), 400),
    "two hosts": (head(GET, b"Host: x", b"host: x"), 400),
    "leading zeros": (head(LINE, b"Host: x", b"Content-Length: 02"), 400),
    "a sign": (head(LINE, b"Host: x", b"Content-Length: +2"), 400),
    "a fraction": (head(LINE, b"Host: x", b"Content-Length: 2.0"), 400),
    "an underscore": (head(LINE, b"Host: x", b"Content-Length: 1_0"), 400),
    "no length at all": (head(LINE, b"Host: x", b"Content-Length:"), 400),
    "an endless length": (head(LINE, b"Host: x", b"Content-Length: " + b"9" * 5000), 400),
    "two lengths": (head(LINE, b"Host: x", b"Content-Length: 2", b"Content-Length: 2"), 400),
    "lengths in a list": (head(LINE, b"Host: x", b"Content-Length: 2, 2"), 400),
    "length and chunks": (head(LINE, *CHUNKED, b"Content-Length: 2"), 400),
    "chunks twice": (head(LINE, *CHUNKED, b"Transfer-Encoding: chunked"), 400),
    "chunks in HTTP/1.0": (head(b"POST / HTTP/1.0", *CHUNKED), 400),
    "gzip": (head(LINE, b"Host: x", b"Transfer-Encoding: gzip, chunked"), 501),
    "identity": (head(LINE, b"Host: x", b"Transfer-Encoding: identity"), 501),
    "hidden chunks": (head(LINE, b"Host: x", b"Transfer-Encoding: \x0bchunked"), 400),
    "any two bytes end a chunk": (in_chunks(b"2\r\n{}XX0\r\n\r\n"), 400),
    "a chunk that goes on": (in_chunks(b"2\r\n{}}\r\n0\r\n\r\n"), 400),
    "LF behind a chunk": (in_chunks(b"2\r\n{}\n0\r\n\r\n"), 400),
    "LF behind a size": (in_chunks(b"2\n{}\r\n0\r\n\r\n"), 400),
    "no size": (in_chunks(b"\r\n{}\r\n"), 400),
    "an odd size": (in_chunks(b"0x2\r\n{}\r\n"), 400),
    "a negative size": (in_chunks(b"-2\r\n{}\r\n"), 400),
    "a size of many digits": (in_chunks(b"0" * 16 + b"2\r\n{}\r\n"), 400),
    "space before a size": (in_chunks(b" 2\r\n{}\r\n"), 400),
    "CR in an extension": (in_chunks(b"2;a\rb\r\n{}\r\n"), 400),
    "an odd trailer": (in_chunks(b"0\r\nA\r\n\r\n"), 400),
    "LF in a trailer": (in_chunks(b"0\r\nA: 1\nB: 2\r\n\r\n"), 400),
    "a long head": (head(GET, b"Host: x", b"A: " + b"a" * MAX_HEAD), 431),
    "many fields": (head(GET, b"Host: x", *[b"A: 1"] * MAX_FIELDS), 431),
    "empty lines without end": (b"\r\n" * MAX_HEAD, 431),
    "a long chunk line": (in_chunks(b"2;" + b"a" * MAX_LINE + b"\r\n{}\r\n"), 400),
    "long trailers": (in_chunks(b"0\r\n" + b"A: 1\r\n" * (MAX_HEAD // 5) + b"\r\n"), 431),
}


@each(("data", "status"), REFUSED.values(), ids=REFUSED)
@each("size", [1, 5, 1 << 20])
def test_refused(data: bytes, status: int, size: int) -> None:
    """What can be read in two ways is refused, in whatever pieces it comes."""
    with pytest.raises(FramingError) as refused:
        feed(data, size)
    assert refused.value.status == status


ENDLESS = {
    "a request line": (b"GET /", b"a", 431),
    "a field": (b"GET / HTTP/1.1\r\nA: ", b"a", 431),
    "blanks": (b"GET / HTTP/1.1\r\nA: ", b" ", 431),
    "fields": (b"GET / HTTP/1.1\r\n", b"A: 1\r\n", 431),
    "a chunk line": (in_chunks(b"2;"), b"a", 400),
    "a size": (in_chunks(b""), b"0", 400),
    "trailers": (in_chunks(b"0\r\n"), b"A: 1\r\n", 431),
    "a trailer": (in_chunks(b"0\r\nA: "), b"a", 431),
}


@each(("begins", "goes_on", "status"), ENDLESS.values(), ids=ENDLESS)
def test_endless(begins: bytes, goes_on: bytes, status: int) -> None:
    """Whatever has no end is refused within a bound."""
    requests = Requests()
    requests.receive(begins)
    sent = 0
    with pytest.raises(FramingError) as refused:
        while sent < 4 * MAX_HEAD:
            requests.receive(goes_on * 64)
            sent += len(goes_on) * 64
    assert refused.value.status == status
    assert requests.held <= MAX_HEAD + len(goes_on) * 64


HEAVY = {
    "blanks": head(GET, b"Host: x", b"A: " + b" " * 60_000 + b"\x01"),
    "fields": head(GET, b"Host: x", *[b"A: 1"] * 200_000),
    "tiny chunks": in_chunks(b"1\r\na\r\n" * 40_000 + b"0\r\n\r\n"),
    "blanks in chunks": in_chunks(b"1\r\na\r\n" * 40_000 + b"1" + b" " * 1000 + b"x"),
}


@each("data", HEAVY.values(), ids=HEAVY)
def test_heavy(data: bytes) -> None:
    """No bytes take long to read."""
    began = time.process_time()
    with suppress(FramingError):
        feed(data, 1 << 20)
    assert time.process_time() - began < 2


def test_byte_by_byte_is_linear() -> None:
    """A head in small pieces is read in linear time."""
    data = head(GET, b"Host: x", b"A: " + b"a" * 60_000)
    began = time.process_time()
    out, _ = feed(data, 1)
    assert out == data
    assert time.process_time() - began < 2


BOUNDED = {
    "a length": head(LINE, b"Host: x", b"Content-Length: 3") + b"abc",
    "chunks": in_chunks(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
}


@each("data", BOUNDED.values(), ids=BOUNDED)
@each("size", [1, 1 << 20])
def test_bound(data: bytes, size: int) -> None:
    """A body over the bound of its route is refused."""
    for bound in (3, 2):
        requests = Requests(lambda head, bound=bound: bound)  # type: ignore[misc]
        try:
            for at in range(0, len(data), size):
                requests.receive(data[at : at + size])
        except FramingError as e:
            assert (bound, e.status) == (2, 413)
        else:
            assert bound == 3
