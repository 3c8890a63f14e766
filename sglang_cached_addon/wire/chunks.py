"""The chunked transfer coding of a body, read strictly (RFC 9112 §7.1).

Pure: bytes in, bytes of the body out. Requests and responses are read by the same rules.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from sglang_cached_addon.wire.heads import FIELD, MAX_HEAD, FramingError

MAX_LINE = 1024
"""How many bytes the line may have that begins a chunk."""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_PLAIN_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n")


class _Expects(Enum):
    """What comes next."""

    LINE = auto()
    DATA = auto()
    LINE_END = auto()
    TRAILER = auto()
    NOTHING = auto()


class Chunks:
    """The chunked transfer coding (RFC 9112 §7.1), read strictly; trailers are dropped (§6.5.1 of
    RFC 9110 lets anybody do that)."""

    def __init__(self) -> None:
        self._expects = _Expects.LINE
        self._left = 0
        """How many bytes of the present chunk are still to come; how many of trailers may."""

    @property
    def is_over(self) -> bool:
        return self._expects is _Expects.NOTHING

    def read(self, buffer: bytearray) -> list[bytes]:
        """Takes what belongs to the body from the front of the buffer, and gives the data of each
        chunk, or as much of it as there is. Raises `FramingError`."""
        pieces: list[bytes] = []
        at: int | None = 0
        while at is not None:
            used = self._plain(buffer, at, pieces)
            at = self._step(buffer, used, pieces)
        del buffer[:used]
        return pieces

    def _plain(self, buffer: bytearray, at: int, pieces: list[bytes]) -> int:
        """Takes the plain chunks that are there as a whole, as most are. Gives where they end."""
        if self._expects is not _Expects.LINE:
            return at
        while line := _PLAIN_LINE.match(buffer, at):
            begin, size = line.end(), int(line[1], 16)
            end = begin + size
            if not size or not buffer.startswith(b"\r\n", end):
                break
            pieces.append(bytes(memoryview(buffer)[begin:end]))
            at = end + 2
        return at

    def _step(self, buffer: bytearray, at: int, pieces: list[bytes]) -> int | None:
        """Takes the next part, and gives where it ends; None as long as it is not whole."""
        if self._expects is _Expects.NOTHING or at == len(buffer):
            return None
        if self._expects is _Expects.DATA:
            piece = bytes(memoryview(buffer)[at : at + self._left])
            pieces.append(piece)
            self._left -= len(piece)
            if not self._left:
                self._expects = _Expects.LINE_END
            return at + len(piece)
        if self._expects is _Expects.LINE_END:
            end = buffer[at : at + 2]
            if not b"\r\n".startswith(end):
                raise FramingError(400, "a chunk does not end where it said")
            if len(end) < 2:
                return None
            self._expects = _Expects.LINE
            return at + 2
        return self._line(buffer, at)

    def _line(self, buffer: bytearray, at: int) -> int | None:
        is_trailer = self._expects is _Expects.TRAILER
        longest = self._left if is_trailer else MAX_LINE
        end = buffer.find(b"\r\n", at, at + longest + 2)
        if end < 0:
            if len(buffer) - at > longest + 1:
                raise FramingError(
                    431 if is_trailer else 400, "a line of a chunked body is too long"
                )
            return None
        line = bytes(buffer[at:end])
        used = len(line) + 2
        if is_trailer:
            self._left = max(self._left - used, 0)
            if not line:
                self._expects = _Expects.NOTHING
            elif not FIELD.fullmatch(line):
                raise FramingError(400, "a trailer field cannot be read")
            return at + used
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise FramingError(400, "a chunk's size cannot be read")
        self._left = int(match[1], 16)
        if self._left:
            self._expects = _Expects.DATA
        else:
            self._expects, self._left = _Expects.TRAILER, MAX_HEAD
        return at + used
