"""What was sent and is not dealt with."""

from __future__ import annotations

from sglang_cached_addon.proxy.held import Held, part


def test_held() -> None:
    """What is behind a place is kept, of new data and of what is held; then it can be taken."""
    held = Held()
    held.keep(b"one two", 4)
    held += b" three"
    held.wanted = 5
    held.keep(held, 4)
    assert (held, held.wanted) == (b"three", 0)
    assert (held.release(), bytes(held)) == (b"three", b"")


def test_part() -> None:
    """A part of either kind of data is bytes."""
    for data in (b"one two", bytearray(b"one two")):
        assert (part(data, 4, 7), type(part(data, 4, 7))) == (b"two", bytes)
