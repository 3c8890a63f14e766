"""Where requests begin and end in the bytes of a client, and that they could not be read otherwise.

Pure: bytes in, bytes out that a laxer and a stricter reader take for the same requests. What
is ambiguous is refused (RFC 9112 §2 to §7), and everything that a client can make long has a
bound before it is parsed. It knows no socket, no route and no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf

MAX_HEAD = 64 * 1024
"""Bytes of a head, and of all trailer fields of a body."""

MAX_FIELDS = 256
"""Fields of a head."""

MAX_LINE = 1024
"""Bytes of the line that begins a chunk."""

# Each of these tells in one pass whether a line fits: no two parts of one could take the same byte.
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) "
    rb"(/[\x21-\x7e]*|\*|(?i:https?)://[\x21-\x7e]+) "
    rb"HTTP/(\d)\.(\d)"
)
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines, in order, as they came."""


class Refused(Exception):
    """Bytes that are no request, or too much of one: the status to answer with, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Head:
    """A request head of which there is only one reading."""

    method: str
    target: str
    is_1_1: bool
    """Of HTTP/1.1; else of HTTP/1.0."""
    fields: Fields
    length: int | None
    """Bytes of the body; None if it comes in chunks."""


def parse(raw: bytes) -> Head:
    """A head, of its own bytes with the empty line. Raises `Refused`."""
    line, *lines = raw[:-4].split(b"\r\n")
    if len(lines) > MAX_FIELDS:
        raise Refused(431, f"more than {MAX_FIELDS} header fields")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Refused(400, "the request line cannot be read")
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if method == b"CONNECT":
        raise Refused(400, "CONNECT: this is a reverse proxy")
    fields = tuple([_field(line) for line in lines])
    is_1_1 = minor == b"1"
    length = _length(fields, is_1_1=is_1_1)
    return Head(method.decode(), target.decode("latin-1"), is_1_1, fields, length)


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise Refused(400, "a header field cannot be read")
    return match[1], match[2].strip(b" \t")


def _length(fields: Fields, *, is_1_1: bool) -> int | None:
    """Bytes of the body behind these fields; None if it comes in chunks."""
    named: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        named.setdefault(name.lower(), []).append(value)
    hosts = len(named.get(b"host", ()))
    if hosts > 1 or (is_1_1 and not hosts):
        raise Refused(400, "there must be one Host field")
    lengths, codings = named.get(b"content-length"), named.get(b"transfer-encoding")
    if codings:
        if lengths or not is_1_1 or len(codings) > 1:
            raise Refused(400, "more than one way to tell where the body ends")
        if codings[0].lower() != b"chunked":
            raise Refused(501, "of transfer codings only chunked is known here")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Refused(400, "Content-Length must be one plain number")
    return int(lengths[0])


class Chunks:
    """The chunked transfer coding (RFC 9112 §7.1), read strictly; trailers are dropped (§6.5.1 of
    RFC 9110 lets anybody do that)."""

    class _Expects(Enum):
        LINE = auto()
        DATA = auto()
        LINE_END = auto()
        TRAILER = auto()
        NOTHING = auto()

    def __init__(self) -> None:
        self._expects = self._Expects.LINE
        self._left = 0
        """Bytes of the present chunk; of the trailers, as many as there may still be."""

    @property
    def is_over(self) -> bool:
        return self._expects is self._Expects.NOTHING

    def read(self, buffer: bytearray) -> list[bytes]:
        """Takes from the front of the buffer what belongs to the body; each chunk of data, or as
        much of it as there is. Raises `Refused`."""
        pieces: list[bytes] = []
        at = 0
        while (used := self._step(buffer, at, pieces)) is not None:
            at += used
        del buffer[:at]
        return pieces

    def _step(self, buffer: bytearray, at: int, pieces: list[bytes]) -> int | None:
        """Bytes that one step takes; None if there are not enough for one."""
        if self._expects is self._Expects.NOTHING or at == len(buffer):
            return None
        if self._expects is self._Expects.DATA:
            piece = bytes(memoryview(buffer)[at : at + self._left])
            pieces.append(piece)
            self._left -= len(piece)
            if not self._left:
                self._expects = self._Expects.LINE_END
            return len(piece)
        if self._expects is self._Expects.LINE_END:
            end = buffer[at : at + 2]
            if not b"\r\n".startswith(end):
                raise Refused(400, "a chunk does not end where it said")
            if len(end) < 2:
                return None
            self._expects = self._Expects.LINE
            return 2
        return self._line(buffer, at)

    def _line(self, buffer: bytearray, at: int) -> int | None:
        is_trailer = self._expects is self._Expects.TRAILER
        longest = self._left if is_trailer else MAX_LINE
        end = buffer.find(b"\r\n", at, at + longest + 2)
        if end < 0:
            if len(buffer) - at > longest + 1:
                raise Refused(431 if is_trailer else 400, "a line of a chunked body is too long")
            return None
        line = bytes(buffer[at:end])
        used = len(line) + 2
        if is_trailer:
            self._left = max(self._left - used, 0)
            if not line:
                self._expects = self._Expects.NOTHING
            elif not _FIELD.fullmatch(line):
                raise Refused(400, "a trailer field cannot be read")
            return used
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Refused(400, "a chunk's size cannot be read")
        self._left = int(match[1], 16)
        if self._left:
            self._expects = self._Expects.DATA
        else:
            self._expects, self._left = self._Expects.TRAILER, MAX_HEAD
        return used


class Phase(Enum):
    """How far a request has come."""

    HEAD = "nothing of it, or part of its head"
    BODY = "its head, and part of its body"
    OVER = "all of it"


class Requests:
    """The requests of one connection, one after the other."""

    def __init__(self, bound: Callable[[Head], float] = lambda head: inf) -> None:
        """`bound`: bytes that the body behind a head may have."""
        self.phase = Phase.HEAD
        self._bound = bound
        self._buffer = bytearray()
        """What has come and may not go on yet."""
        self._searched = 0
        """Bytes of it without the end of a head."""
        self._blank = 0
        """Bytes of empty lines before a head."""
        self._left: float = 0
        """Bytes that the body may still have."""
        self._chunks: Chunks | None = None

    @property
    def held(self) -> int:
        """Bytes that wait."""
        return len(self._buffer)

    def receive(self, data: bytes) -> bytes:
        """Takes what has come; gives what may go on of the present request. Raises `Refused`."""
        self._buffer += data
        return self._read()

    def next(self) -> bytes:
        """The present request is over and done with: as above, of the one behind it."""
        self.phase = Phase.HEAD
        return self._read()

    def rest(self) -> bytes:
        """Whatever waits, when it is no HTTP any more."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def _read(self) -> bytes:
        head = self._read_head() if self.phase is Phase.HEAD else b""
        body = self._read_body() if self.phase is Phase.BODY else b""
        return head + body if head else body

    def _read_head(self) -> bytes:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # RFC 9112 §2.2
            del buffer[:2]
            self._blank += 2
        end = buffer.find(b"\r\n\r\n", self._searched)
        if max(end, len(buffer) if end < 0 else 0) + self._blank > MAX_HEAD:
            raise Refused(431, f"a request head of more than {MAX_HEAD} bytes")
        # Refused as soon as it is seen, for there may never be an end that we would wait for.
        if _BARE.search(buffer, self._searched, len(buffer) if end < 0 else end):
            raise Refused(400, "lines must end with CRLF")
        if end < 0:
            self._searched = max(len(buffer) - 3, 0)
            return b""
        raw = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._searched = self._blank = 0
        head = parse(raw)
        bound = self._bound(head)
        if head.length is not None and head.length > bound:
            raise Refused(413, "the body is too large for this route")
        self._chunks = Chunks() if head.length is None else None
        self._left = bound if head.length is None else head.length
        self.phase = Phase.BODY
        return _plain(raw, head)

    def _read_body(self) -> bytes:
        if self._chunks is None:
            data = bytes(memoryview(self._buffer)[: int(self._left)])
            del self._buffer[: len(data)]
            self._left -= len(data)
            if not self._left:
                self.phase = Phase.OVER
            return data
        # One chunk of all that has come: there may be thousands, and each would be looked at.
        data = b"".join(self._chunks.read(self._buffer))
        self._left -= len(data)
        if self._left < 0:
            raise Refused(413, "the body is too large for this route")
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if not self._chunks.is_over:
            return chunk
        self.phase = Phase.OVER
        return chunk + b"0\r\n\r\n"


def _plain(raw: bytes, head: Head) -> bytes:
    """A head in which nothing is left that only some understand: an upgrade to anything but
    WebSocket (to h2c, say) is not taken, which anybody may do (RFC 9110 §7.8), and what is said of
    the connection is in lower case."""
    dropped: set[bytes] = set()
    is_plain = True
    for name, value in head.fields:
        name = name.lower()
        if name == b"upgrade" and value.lower() != b"websocket":
            dropped = {b"upgrade", b"http2-settings"}
        if name == b"connection" and head.is_1_1:
            is_plain = is_plain and value == value.lower()
    if is_plain and not dropped:
        return raw
    lines = [raw[: raw.index(b"\r\n")]]
    for name, value in head.fields:
        if name.lower() in dropped:
            continue
        if name.lower() == b"connection":
            options = [option.strip() for option in value.lower().split(b",")]
            value = b", ".join([option for option in options if option not in dropped])
            if not value:
                continue
        lines.append(name + b": " + value)
    return b"\r\n".join(lines) + b"\r\n\r\n"
