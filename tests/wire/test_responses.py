"""The responses of a server, from the bytes of one connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sglang_cached_addon.wire.heads import MAX_FIELDS, MAX_HEAD, FramingError
from sglang_cached_addon.wire.responses import Responses

LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"
OK = LINE + b"Content-Length: 2\r\n\r\nok"


def feed(responses: Responses, data: bytes, size: int) -> Iterator[None]:
    """Gives the bytes in parts of this size, and after them the end of the connection."""
    for at in range(0, len(data), size):
        responses.receive(data[at : at + size])
        yield
    responses.receive(b"")
    yield


def read(data: bytes, size: int, method: str = "POST") -> tuple[int, bytes, bool]:
    """The status and body of a response, and whether the connection can be used again before it is
    hung up. Raises EOFError for a response that is not whole."""
    responses = Responses()
    responses.expect(method)
    head, body = None, b""
    for _ in feed(responses, data, size):
        if head is None and (head := responses.head()) is None:
            continue
        body += b"".join(responses.pieces())
        if responses.is_over and (responses.has_ended or responses.keeps):
            return head.status, body, responses.keeps
    if head and responses.is_over:
        return head.status, body, False
    raise EOFError


WHOLE = {
    "length": (LINE + b"Content-Length: 6\r\n\r\nabcdef", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 6\r\n\r\nabcdef", True),
    "chunks": (CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", True),
    "extensions, blanks, trailers": (
        CHUNKED + b"3;a=b\r\nabc\r\n03 \r\ndef\r\n0\r\nA: 1\r\n\r\n", True,
    ),
    "one that is to be closed": (
        LINE + b"Connection: x, Close\r\nContent-Length: 6\r\n\r\nabcdef", False,
    ),
    "until it hangs up": (LINE + b"\r\nabcdef", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nabcdef", False),
    "behind others": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\nA: 1\n\n"
        + LINE + b"Content-Length: 6\r\n\r\nabcdef", True,
    ),
    "LF alone": (b"HTTP/1.1 200 OK\nContent-Length: 6\n\nabcdef", True),
    "something behind it": (LINE + b"Content-Length: 6\r\n\r\nabcdefg", False),
}  # fmt: skip


def test_whole() -> None:
    """A response is read to its end, in whatever pieces it comes, and no further."""
    for name, (data, keeps) in WHOLE.items():
        for size in (1, 7, 1 << 20):
            status, body, kept = read(data, size)
            assert (status, body) == (200, b"abcdef"), (name, size)
            # Byte by byte, it is over before what is behind it has come.
            assert kept == keeps or (name == "something behind it" and size < 1 << 20), (name, size)


def test_without_a_body() -> None:
    """A response to HEAD, a 204 and a 304 have no body, whatever their heads say."""
    for method, line in (
        ("HEAD", LINE), ("GET", b"HTTP/1.1 204 No Content\r\n"), ("GET", b"HTTP/1.1 304 X\r\n"),
    ):  # fmt: skip
        for field in (b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
            status, body, keeps = read(line + field + b"\r\n", 1 << 20, method)
            assert (status, body, keeps) == (int(line[9:12]), b"", True), (method, line, field)


def test_one_after_the_other() -> None:
    """Each response is that of its request, and nothing of one is taken for the next one's."""
    responses = Responses()
    for status, data, body in (
        (200, OK, b"ok"),
        (404, b"HTTP/1.1 404 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"a"),
        (200, OK, b"ok"),
    ):
        responses.expect("GET")
        assert not responses.has_begun
        responses.receive(data)
        head = responses.head()
        assert head
        assert (head.status, b"".join(responses.pieces())) == (status, body)
        assert responses.is_over
        assert responses.keeps
        assert responses.has_begun
    responses.receive(OK)
    assert not responses.keeps


REFUSED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "an empty line": b"\r\n" + OK,
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "another HTTP/1": b"HTTP/1.2 200 OK\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status below 100": b"HTTP/1.1 099 OK\r\n\r\n",
    "a status of text": b"HTTP/1.1 OK 200\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "no colon": LINE + b"A\r\n\r\n",
    "a blank before the colon": LINE + b"Content-Length : 2\r\n\r\nok",
    "a folded field": LINE + b"A: 1\r\n b\r\n\r\n",
    "a CR in a field": LINE + b"A: 1\rB: 2\r\n\r\n",
    "a NUL in a field": LINE + b"A: \0\r\n\r\n",
    "two lengths": LINE + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a list of lengths": LINE + b"Content-Length: 2, 2\r\n\r\nok",
    "a negative length": LINE + b"Content-Length: -2\r\n\r\nok",
    "a length with a sign": LINE + b"Content-Length: +2\r\n\r\nok",
    "a length of hexadecimal digits": LINE + b"Content-Length: 0x2\r\n\r\nok",
    "a length and chunks": LINE + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks twice": LINE + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n",
    "another coding": LINE + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks of HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a huge head": LINE + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    "an endless head": LINE + b"A: 1\r\n" * MAX_HEAD,
    "an endless status line": b"HTTP/1.1 200 " + b"a" * (MAX_HEAD + 1),
    "many fields": LINE + b"A: 1\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "an endless interim head": b"HTTP/1.1 103 A\r\n" + b"A: 1\r\n" * MAX_HEAD,
    "any two bytes end a chunk": CHUNKED + b"3\r\nabcXX3\r\ndef\r\n0\r\n\r\n",
    "a chunk without a size": CHUNKED + b"\r\n",
    "a size of text": CHUNKED + b"x\r\n",
    "a signed size": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a long chunk line": CHUNKED + b"3;" + b"x" * 2000 + b"\r\nabc\r\n0\r\n\r\n",
    "an endless chunk line": CHUNKED + b"3;" + b"x" * 200_000,
    "endless trailers": CHUNKED + b"0\r\n" + b"A: 1\r\n" * 40_000,
    "a trailer that is no field": CHUNKED + b"0\r\nA\r\n\r\n",
}


def test_refused() -> None:
    """What can be read in two ways, or has no bound, is no answer."""
    for name, data in REFUSED.items():
        for size in (11, 1 << 20):
            with pytest.raises(FramingError):
                pytest.fail(f"{name}: {read(data, size)}")


def test_cut() -> None:
    """A response that is cut at any byte is not taken for a whole one."""
    for name, (data, _) in WHOLE.items():
        if name not in ("until it hangs up", "something behind it"):
            for end in range(len(data)):
                with pytest.raises(EOFError):
                    pytest.fail(f"{name}: {read(data[:end], 1 << 20)}")
