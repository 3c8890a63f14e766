"""The responses of a server, in the bytes of one connection.

Pure: bytes in, heads and bodies out. What is ambiguous is refused, and what the server can make
long has a bound. It knows no socket, and nothing of a request but its method.
"""

from __future__ import annotations

import re

from sglang_cached_addon.wire.chunks import Chunks
from sglang_cached_addon.wire.heads import MAX_HEAD, FramingError, ResponseHead, parse_response

_HEAD_END = re.compile(rb"\n\r?\n")


class Responses:
    """Reads the responses of one connection, one after the other."""

    def __init__(self) -> None:
        self.has_begun = False
        """Some of the present response has come."""
        self._method = ""
        self._buffer = bytearray()
        """What has come and was not given on yet."""
        self._searched = 0
        """How many bytes of the buffer are known to have no end of a head."""
        self.has_ended = False
        """The server has hung up."""
        self._head: ResponseHead | None = None
        self._left: float = 0
        """How many bytes of the body are still to come, where it has a length."""
        self._chunks: Chunks | None = None

    def expect(self, method: str) -> None:
        """Notes that a request with this method is sent: what comes next is its response."""
        self.has_begun = False
        self._method, self._head = method, None

    @property
    def held(self) -> int:
        """How many bytes have come and were not given on."""
        return len(self._buffer)

    def receive(self, data: bytes | memoryview) -> None:
        """Takes what has come; nothing means that the server has hung up."""
        if data:
            self.has_begun = True
            self._buffer += data
        else:
            self.has_ended = True

    def head(self) -> ResponseHead | None:
        """The head of the response, without those of interim ones (1xx) before it; None as long as
        it is not whole. Raises `FramingError`."""
        while True:
            end = _HEAD_END.search(self._buffer, max(self._searched - 2, 0))
            size = end.start() if end else len(self._buffer)
            if size > MAX_HEAD:
                raise FramingError(502, f"a head of more than {MAX_HEAD} bytes")
            if end is None:
                self._searched = size
                return None
            head = parse_response(bytes(self._buffer[:size]), self._method)
            del self._buffer[: end.end()]
            self._searched = 0
            if head.status == 101:
                raise FramingError(502, "it changes the protocol, which nobody has asked for")
            if head.status >= 200:
                self._head, self._left = head, head.length or 0
                self._chunks = Chunks() if head.length is None else None
                return head

    def pieces(self) -> list[bytes]:
        """What has come of the body. Raises `FramingError`."""
        if self._chunks:
            return self._chunks.read(self._buffer)
        if len(self._buffer) <= self._left:
            piece = bytes(self._buffer)
            self._buffer.clear()
        else:
            piece = bytes(memoryview(self._buffer)[: int(self._left)])
            del self._buffer[: len(piece)]
        self._left -= len(piece)
        return [piece] if piece else []

    @property
    def is_over(self) -> bool:
        """The body has been given to its end."""
        if self._chunks:
            return self._chunks.is_over
        is_open = self._head is not None and self._head.length == float("inf")
        return self.has_ended and not self._buffer if is_open else not self._left

    @property
    def keeps(self) -> bool:
        """Another request may be sent: this response is over, and nothing came behind it."""
        is_kept = self._head is not None and not self._head.closes and self.is_over
        return is_kept and not self._buffer and not self.has_ended
