"""Heads of requests."""

from __future__ import annotations

import pytest

from sglang_cached_addon.wire.heads import FramingError, parse


def test_parts_of_a_head() -> None:
    """A head is read as it came: names and values are not changed, but for blanks around."""
    raw = (
        b"POST /v1?a=%20 HTTP/1.1\r\nhOst: x\r\nContent-Length:  7\t\r\nX-A:\r\nx-a: \xe9 b\r\n\r\n"
    )
    head = parse(raw)
    assert (head.method, head.target, head.is_1_1, head.length) == ("POST", "/v1?a=%20", True, 7)
    assert head.fields == (
        (b"hOst", b"x"), (b"Content-Length", b"7"), (b"X-A", b""), (b"x-a", b"\xe9 b"),
    )  # fmt: skip
    old = parse(b"GET / HTTP/1.0\r\n\r\n")
    assert (old.is_1_1, old.length, old.fields) == (False, 0, ())
    chunked = parse(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n")
    assert chunked.length is None


def test_refusals_say_their_status() -> None:
    """A head that may be read in two ways is refused, with the status for that."""
    for line, status in (
        (b"Content-Length: 1\r\nContent-Length: 1", 400),
        (b"Content-Length: +1", 400),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: gzip", 501),
        (b"Host: y", 400),
        (b"A : b", 400),
    ):
        with pytest.raises(FramingError) as caught:
            parse(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
        assert caught.value.status == status, line
