"""Where requests begin and end in the bytes of a client, and that they could not be read otherwise.

Pure: bytes in, bytes out that a laxer and a stricter reader take for the same requests. It knows no
socket, no route and no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from math import inf

from sglang_cached_addon.wire.chunks import Chunks
from sglang_cached_addon.wire.heads import MAX_HEAD, FramingError, RequestHead, parse

_BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")


class Phase(Enum):
    """How far a request has come."""

    HEAD = "nothing of it, or part of its head"
    BODY = "its head, and part of its body"
    OVER = "all of it"


class Requests:
    """The requests of one connection, one after the other."""

    def __init__(self, bound: Callable[[RequestHead], float] = lambda head: inf) -> None:
        """`bound` gives how many bytes the body behind a head may have."""
        self.phase = Phase.HEAD
        self._bound = bound
        self._buffer = bytearray()
        """What has come and was not given on yet."""
        self._searched = 0
        """How many bytes of the buffer are known to have no end of a head."""
        self._blank = 0
        """How many bytes of empty lines came before the head."""
        self._left: float = 0
        """How many bytes the body may still have."""
        self._chunks: Chunks | None = None

    @property
    def held(self) -> int:
        """How many bytes wait in the buffer."""
        return len(self._buffer)

    def receive(self, data: bytes) -> bytes:
        """Takes what has come; gives what may go on of the present request. Raises
        `FramingError`."""
        self._buffer += data
        return self._read()

    def next(self) -> bytes:
        """Goes on to the next request; gives what may go on of that. Raises `FramingError`."""
        self.phase = Phase.HEAD
        return self._read()

    def release(self) -> bytes:
        """Gives all that waits, where it is not HTTP any more."""
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
        size = len(buffer) if end < 0 else end
        if size + self._blank > MAX_HEAD:
            raise FramingError(431, f"a request head of more than {MAX_HEAD} bytes")
        # Refused as soon as it is seen: a head with such a line may have no end to wait for.
        if _BARE.search(buffer, self._searched, size):
            raise FramingError(400, "lines must end with CRLF")
        if end < 0:
            self._searched = max(size - 3, 0)
            return b""
        raw = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        self._searched = self._blank = 0
        head = parse(raw)
        bound = self._bound(head)
        if head.length is not None and head.length > bound:
            raise FramingError(413, "the body is too large for this route")
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
        # All goes on as one chunk: mitmproxy looks at each, and there may be thousands.
        data = b"".join(self._chunks.read(self._buffer))
        self._left -= len(data)
        if self._left < 0:
            raise FramingError(413, "the body is too large for this route")
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if not self._chunks.is_over:
            return chunk
        self.phase = Phase.OVER
        return chunk + b"0\r\n\r\n"


def _plain(raw: bytes, head: RequestHead) -> bytes:
    """The head without what only some servers understand: an upgrade to anything but WebSocket (to
    h2c, say) is left out, as any server may ignore it (RFC 9110 §7.8), and the options of
    `Connection` are in lower case."""
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
