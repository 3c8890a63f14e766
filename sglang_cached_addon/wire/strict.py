"""h11's reader of chunked bodies, made strict.

Pure. With older versions of h11 any two bytes end a chunk (CVE-2025-43859), which hides an answer
in another one. This reads the same bytes as `framing` reads those of clients, whatever the version.
"""

from __future__ import annotations

from collections import deque

import h11
from h11._readers import ChunkedReader
from h11._receivebuffer import ReceiveBuffer

from sglang_cached_addon.wire.chunks import Chunks
from sglang_cached_addon.wire.heads import FramingError


class StrictReader(ChunkedReader):
    """Takes the place of h11's reader of chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks = Chunks()
        self._buffer = bytearray()
        self._pieces: deque[bytes] = deque()

    def __call__(self, buf: ReceiveBuffer) -> h11.Data | h11.EndOfMessage | None:
        if data := buf.maybe_extract_at_most(len(buf)):
            self._buffer += data
            try:
                self._pieces.extend(self._chunks.read(self._buffer))
            except FramingError as e:
                raise h11.RemoteProtocolError(str(e)) from e
        if self._pieces:
            return h11.Data(data=self._pieces.popleft())
        if not self._chunks.is_over:
            return None
        buf += self._buffer
        self._buffer.clear()
        return h11.EndOfMessage()
