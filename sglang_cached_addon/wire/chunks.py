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
        """How many bytes of the present chunk are still to come; how many of trailers may."""

    @property
    def is_over(self) -> bool:
        return self._expects is self._Expects.NOTHING

    def read(self, buffer: bytearray) -> list[bytes]:
        """Takes what belongs to the body from the front of the buffer, and gives the data of each
        chunk, or as much of it as there is. Raises `FramingError`."""
        pieces: list[bytes] = []
        at = 0
        while (
            used := self._whole(buffer, at, pieces) or self._step(buffer, at, pieces)
        ) is not None:
            at += used
        del buffer[:at]
        return pieces

    def _whole(self, buffer: bytearray, at: int, pieces: list[bytes]) -> int:
        """Takes a plain chunk that is there as a whole, as most are. Gives its size in bytes, 0
        where there is none."""
        if self._expects is not self._Expects.LINE or not (line := _PLAIN_LINE.match(buffer, at)):
            return 0
        start, size = line.end(), int(line[1], 16)
        end = start + size
        if not size or buffer[end : end + 2] != b"\r\n":
            return 0
        pieces.append(bytes(memoryview(buffer)[start:end]))
        return end + 2 - at

    def _step(self, buffer: bytearray, at: int, pieces: list[bytes]) -> int | None:
        """Takes the next part, and gives its size in bytes; None as long as it is not whole."""
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
                raise FramingError(400, "a chunk does not end where it said")
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
                raise FramingError(
                    431 if is_trailer else 400, "a line of a chunked body is too long"
                )
            return None
        line = bytes(buffer[at:end])
        used = len(line) + 2
        if is_trailer:
            self._left = max(self._left - used, 0)
            if not line:
                self._expects = self._Expects.NOTHING
            elif not FIELD.fullmatch(line):
                raise FramingError(400, "a trailer field cannot be read")
            return used
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise FramingError(400, "a chunk's size cannot be read")
        self._left = int(match[1], 16)
        if self._left:
            self._expects = self._Expects.DATA
        else:
            self._expects, self._left = self._Expects.TRAILER, MAX_HEAD
        return used
