"""Heads of messages, of which there is only one reading.

Pure: bytes in, a head out. What is ambiguous is refused (RFC 9112 §2 to §6), and everything that
the other side can make long has a bound. It knows no socket and no route.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import Any

MAX_HEAD = 64 * 1024
"""How many bytes a head may have, and all trailer fields of a body together."""

MAX_FIELDS = 256
"""How many fields a head may have."""

# Each of these tells in one pass whether a line fits: no byte can belong to either of two parts.
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) "
    rb"(/[\x21-\x7e]*|\*|(?i:https?)://[\x21-\x7e]+) "
    rb"HTTP/(\d)\.(\d)"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines, in order, as they came."""


class FramingError(Exception):
    """Bytes that are no message of HTTP, or too much of one: the status to answer a client with,
    and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request head of which there is only one reading."""

    method: str
    target: str
    is_1_1: bool
    """Whether its version is HTTP/1.1; else it is HTTP/1.0."""
    fields: Fields
    length: int | None
    """How many bytes the body has; None if it comes in chunks."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response of which there is only one reading."""

    status: int
    fields: Fields
    length: float | None
    """How many bytes the body has; None if it comes in chunks, infinite if it ends when the server
    hangs up."""
    closes: bool
    """The server takes no other request on the connection."""


def parse(raw: bytes) -> RequestHead:
    """Reads the bytes of a head, with its empty line. Raises `FramingError`."""
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
    hosts = len(_values(fields, b"host"))
    if hosts > 1 or (is_1_1 and not hosts):
        raise FramingError(400, "there must be one Host field")
    length = _length(fields, is_1_1=is_1_1, default=0)
    return RequestHead(method.decode(), target.decode("latin-1"), is_1_1, fields, length)


def parse_response(raw: bytes, method: str) -> ResponseHead:
    """Reads the bytes of a response's head, without the empty line; `method` is that of the
    request. Servers may end lines with LF alone. Raises `FramingError`."""
    line, *lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    if len(lines) > MAX_FIELDS:
        raise FramingError(502, f"more than {MAX_FIELDS} header fields")
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise FramingError(502, "the status line cannot be read")
    is_1_1, status = match[1] == b"1", int(match[2])
    fields = tuple([_field(line) for line in lines])
    length = _length(fields, is_1_1=is_1_1, default=inf)
    if method == "HEAD" or status < 200 or status in (204, 304):
        length = 0
    options = b",".join(_values(fields, b"connection")).lower().split(b",")
    closes = not is_1_1 or length == inf or b"close" in [option.strip() for option in options]
    return ResponseHead(status, fields, length, closes)


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = FIELD.fullmatch(line)
    if match is None:
        raise FramingError(400, "a header field cannot be read")
    return match[1], match[2].strip(b" \t")


def _values(fields: Fields, name: bytes) -> list[bytes]:
    """The values of the fields with this lower-case name."""
    return [value for one, value in fields if len(one) == len(name) and one.lower() == name]


def _length(fields: Fields, *, is_1_1: bool, default: float) -> Any:
    """How many bytes the body has; None if it comes in chunks, `default` if the fields do not
    tell."""
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if codings:
        if lengths or not is_1_1 or len(codings) > 1:
            raise FramingError(400, "more than one way to tell where the body ends")
        if codings[0].lower() != b"chunked":
            raise FramingError(501, "of transfer codings only chunked is known here")
        return None
    if not lengths:
        return default
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise FramingError(400, "Content-Length must be one plain number")
    return int(lengths[0])
