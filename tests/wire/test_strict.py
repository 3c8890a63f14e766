"""h11 with a strict reader of chunks: kept connections, and what is refused."""

from __future__ import annotations

import h11
import pytest

from sglang_cached_addon.wire.strict import StrictReader
from tests.tables import each
from tests.wire.test_framing import REFUSED, in_chunks

BODIES = {
    name: data.partition(b"\r\n\r\n")[2]
    for name, (data, _) in REFUSED.items()
    if data.startswith(in_chunks(b""))
}


def read(data: bytes, size: int) -> tuple[list[bytes], bytes]:
    """The pieces of a body that comes in parts of a size, and what is behind it."""
    buffer, reader, pieces = h11._receivebuffer.ReceiveBuffer(), StrictReader(), []
    for at in range(0, len(data), size):
        buffer += data[at : at + size]
        while event := reader(buffer):
            if isinstance(event, h11.EndOfMessage):
                return pieces, bytes(buffer) + data[at + size :]
            pieces.append(bytes(event.data))
    raise AssertionError("there is no end")


@each("size", [1, 3, 1 << 20])
def test_whole(size: int) -> None:
    """A body is read to its end, and what is behind it stays."""
    pieces, rest = read(b"1\r\na\r\n2;x\r\nbc\r\n0\r\nA: 1\r\n\r\nHTTP/1.1 200", size)
    assert b"".join(pieces) == b"abc"
    assert rest == b"HTTP/1.1 200"
    if size > 3:
        assert pieces == [b"a", b"bc"]


@each("data", BODIES.values(), ids=BODIES)
@each("size", [1, 1 << 20])
def test_refused(data: bytes, size: int) -> None:
    """What can be read in two ways is refused."""
    with pytest.raises(h11.RemoteProtocolError):
        read(data, size)
