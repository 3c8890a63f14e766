"""A request as it goes out to a server: its header fields, and its bytes. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from sglang_cached_addon.core import runs
from sglang_cached_addon.wire.connection import HOP_BY_HOP, Broken, Headers, named_in_connection
from sglang_cached_addon.wire.heads import FIELD


class Request(NamedTuple):
    """A request."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""

    def is_like(self, other: Request) -> bool:
        """Whether it is the other one but for header fields."""
        return (self.method, self.path, self.body) == (other.method, other.path, other.body)


# The client's fields that are not passed on: those of its connection, and those that are written
# here anew, or are for the cache.
_NOT_PASSED_ON = HOP_BY_HOP | {
    b"expect",
    b"host",
    b"content-length",
    b"accept-encoding",
    runs.HEADER,
}

_TARGET = re.compile(r"[\x21-\x7e]+")


def complete(asked: Request, authority: bytes, *, keeps_host: bool) -> Request:
    """A request with a client's header fields, and with those with which it goes to the server of
    this authority, instead. `keeps_host`: the server is told the host that the client has asked
    for."""
    method, path, headers, body = asked
    dropped = _NOT_PASSED_ON | named_in_connection(headers)
    hosts = [value for name, value in headers if name.lower() == b"host"]
    fields = [(b"Host", hosts[0] if keeps_host and hosts else authority)]
    fields += [field for field in headers if field[0].lower() not in dropped]
    fields.append((b"Accept-Encoding", b"identity"))  # it is read as it passes
    if body or method in ("POST", "PUT", "PATCH"):
        fields.append((b"Content-Length", b"%d" % len(body)))
    return Request(method, path, fields, body)


def written(request: Request) -> bytes:
    """A request in bytes. Raises `Broken` for one that cannot be sent."""
    method, path, headers, body = request
    if not _TARGET.fullmatch(path):
        raise Broken("the request cannot be sent: its target has more than visible characters")
    lines = [b"%b: %b" % field for field in headers]
    if not all(map(FIELD.fullmatch, lines)):
        raise Broken("the request cannot be sent: a header field cannot be written")
    start = b"%b %b HTTP/1.1" % (method.encode(), path.encode())
    return b"%b\r\n\r\n%b" % (b"\r\n".join((start, *lines)), body)
