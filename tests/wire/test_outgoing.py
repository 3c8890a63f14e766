"""Requests as they go out."""

from __future__ import annotations

import pytest

from sglang_cached_addon.wire.connection import Broken
from sglang_cached_addon.wire.outgoing import Request, complete, written
from tests.tables import each

FIELDS = [
    (b"Host", b"asked.example"),
    (b"Connection", b"x-hop"),
    (b"X-Hop", b"1"),
    (b"Content-Length", b"9"),
    (b"Accept-Encoding", b"gzip"),
    (b"X-Cache-Run", b"a"),
    (b"Authorization", b"Bearer k"),
]


@each(
    ("method", "body", "keeps_host", "fields"),
    [
        ("POST", b"{}", False, [(b"Host", b"here"), (b"Content-Length", b"2")]),
        ("POST", b"", False, [(b"Host", b"here"), (b"Content-Length", b"0")]),
        ("GET", b"", True, [(b"Host", b"asked.example")]),
    ],
)
def test_complete(
    method: str, body: bytes, keeps_host: bool, fields: list[tuple[bytes, bytes]]
) -> None:
    """What is of the client's connection, or for the cache, does not go out; to be completed again
    changes nothing."""
    asked = Request(method, "/a", FIELDS, body)
    sent = complete(asked, b"here", keeps_host=keeps_host)
    host, *length = fields
    kept = [(b"Authorization", b"Bearer k"), (b"Accept-Encoding", b"identity")]
    assert sent.headers == [host, *kept, *length]
    assert complete(sent, b"here", keeps_host=keeps_host) == sent
    assert sent.is_like(asked)
    assert not sent.is_like(Request(method, "/b", FIELDS, body))
    assert written(sent).startswith(b"%b /a HTTP/1.1\r\nHost: %b\r\n" % (method.encode(), host[1]))
    assert written(sent).endswith(b"\r\n\r\n" + body)


@each(("path", "field"), [("/a b", b"1"), ("", b"1"), ("/\xe4", b"1"), ("/a", b"1\r\nX: 2")])
def test_what_cannot_be_sent(path: str, field: bytes) -> None:
    """Nobody smuggles a second request into one."""
    with pytest.raises(Broken, match="cannot be sent"):
        written(Request("GET", path, [(b"A", field)]))
