"""Request ids: by what a request is known in the log, to its client and upstream (`X-Request-Id`).

Pure; whoever makes ids gives what is theirs alone. An id is no part of a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import count

HEADER = b"x-request-id"
"""The header field, in lower case."""

_SANE = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")


def of_client(headers: Mapping[bytes, bytes]) -> bytes:
    """The id that a client has given its request; empty where that is none, or is odd. Names of
    fields are lower-case."""
    value = headers.get(HEADER, b"")
    return value if _SANE.fullmatch(value) else b""


class Ids:
    """Ids of our own. No id begins with another one: SGLang aborts all requests whose id begins
    with that of one that has left."""

    def __init__(self, prefix: str) -> None:
        """`prefix` is of this process alone."""
        self.next = _ids(prefix.encode()).__next__
        """Gives the next one."""


def _ids(prefix: bytes) -> Iterator[bytes]:
    for block in count():
        begun = b"%b-%08x" % (prefix, block)
        for tail in _TAILS:  # each hit has an id: to add bytes is cheaper than to format a number
            yield begun + tail


_TAILS = [b"%02x" % tail for tail in range(256)]


def of_fetch(request: bytes, token: str) -> str:
    """The id of a fetch for a request, which begins with that of the request; empty where that has
    none. The token is of this fetch alone: a client may use its id again, and two requests of one
    id are refused, or are taken for one."""
    return f"{request.decode()}.{token}" if request else ""


def is_for(fetch: str, request: bytes) -> bool:
    """Whether the fetch of that id was begun for that request."""
    return fetch.rpartition(".")[0] == request.decode()


def shown(fields: tuple[tuple[bytes, bytes], ...], fetch: str) -> tuple[tuple[bytes, bytes], ...]:
    """The header fields that upstream is sent with the fetch of that id."""
    if not fetch:
        return fields
    others = (field for field in fields if field[0].lower() != HEADER)
    return (*others, (b"X-Request-Id", fetch.encode()))
