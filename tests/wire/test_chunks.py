"""The chunked transfer coding."""

from __future__ import annotations

from sglang_cached_addon.wire.chunks import Chunks


def test_chunks_are_given_one_by_one() -> None:
    """Each chunk is given for itself."""
    chunks, buffer = Chunks(), bytearray(b"1\r\na\r\n2\r\nbc\r\n0\r\nA: 1\r\n\r\nmore")
    assert chunks.read(buffer) == [b"a", b"bc"]
    assert chunks.is_over
    assert buffer == b"more"
