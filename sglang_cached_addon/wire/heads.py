"""Heads of requests, of which there is only one reading.

Pure: bytes in, a head out. What is ambiguous is refused (RFC 9112 §2 to §6), and everything that a
client can make long has a bound before it is parsed. It knows no socket, no route and no answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 64 * 1024
"""Bytes of a head, and of all trailer fields of a body."""

MAX_FIELDS = 256
"""Fields of a head."""

# Each of these tells in one pass whether a line fits: no two parts of one could take the same byte.
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) "
    rb"(/[\x21-\x7e]*|\*|(?i:https?)://[\x21-\x7e]+) "
    rb"HTTP/(\d)\.(\d)"
)
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines, in order, as they came."""


class FramingError(Exception):
    """Bytes that are no request, or too much of one: the status to answer with, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request head of which there is only one reading."""

    method: str
    target: str
    is_1_1: bool
    """Of HTTP/1.1; else of HTTP/1.0."""
    fields: Fields
    length: int | None
    """Bytes of the body; None if it comes in chunks."""


def parse(raw: bytes) -> RequestHead:
    """A head, of its own bytes with the empty line. Raises `FramingError`."""
    line, *lines = raw[:-4].split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise FramingError(431, f"more than {MAX_FIELDS} header fields")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise FramingError(400, "the request line cannot be read")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise FramingError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if method == b"CONNECT":
        raise FramingError(400, "CONNECT: this is a reverse proxy")
    fields = tuple([_field(line) for line in lines])
    is_1_1 = minor == b"1"
    length = _length(fields, is_1_1=is_1_1)
    return RequestHead(method.decode(), target.decode("latin-1"), is_1_1, fields, length)


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = FIELD.fullmatch(line)
    if match is None:
        raise FramingError(400, "a header field cannot be read")
    return match[1], match[2].strip(b" \t")


def _length(fields: Fields, *, is_1_1: bool) -> int | None:
    """Bytes of the body behind these fields; None if it comes in chunks."""
    named: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        named.setdefault(name.lower(), []).append(value)
    hosts = len(named.get(b"host", ()))
    if hosts > 1 or (is_1_1 and not hosts):
        raise FramingError(400, "there must be one Host field")
    lengths, codings = named.get(b"content-length"), named.get(b"transfer-encoding")
    if codings:
        if lengths or not is_1_1 or len(codings) > 1:
            raise FramingError(400, "more than one way to tell where the body ends")
        if codings[0].lower() != b"chunked":
            raise FramingError(501, "of transfer codings only chunked is known here")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise FramingError(400, "Content-Length must be one plain number")
    return int(lengths[0])
