"""Packed extents: who has which slots of a pool."""

from __future__ import annotations

from sglang_cached_addon.store.journal.extents import (
    NO_NAME,
    Place,
    Record,
    end_of,
    moved,
    pack,
    positions,
    unpack,
    weight_of,
    with_extent,
    with_offset,
)

NAME = b"n" * 16


def extent(offset: int, slot: int, count: int, skip: int = 0, raw: bytes = NO_NAME) -> Record:
    return (offset, 10 + offset % 10, 1.0, skip, slot, count, 0, raw)


def test_replaced() -> None:
    """A new extent takes its slots from those that had them, and takes over a body's name only
    where nothing is left of the extent that had it."""
    pool = pack([extent(1, 0, 3, raw=NAME), extent(2, 3, 2)])
    left = extent(1, 0, 3, raw=NAME)
    cases = {
        (0, 1): [extent(9, 0, 1), extent(1, 1, 2, 1, NAME), extent(2, 3, 2)],
        (1, 1): [
            extent(1, 0, 1, 0, NAME),
            extent(9, 1, 1),
            extent(1, 2, 1, 2, NAME),
            extent(2, 3, 2),
        ],
        (2, 2): [extent(1, 0, 2, 0, NAME), extent(9, 2, 2), extent(2, 4, 1, 1)],
        (3, 2): [left, extent(9, 3, 2)],
        (4, 4): [left, extent(2, 3, 1), extent(9, 4, 4)],
        (7, 1): [left, extent(2, 3, 2), extent(9, 7, 1)],
        (0, 9): [extent(9, 0, 9, raw=NAME)],
    }
    for (slot, count), wanted in cases.items():
        found = with_extent(pool, extent(9, slot, count))
        assert list(unpack(found)) == wanted, (slot, count)
        assert end_of(found) == max(one[4] + one[5] for one in wanted)
        assert weight_of(found) == sum({one[0]: one[1] for one in wanted}.values())


def test_places() -> None:
    """A line is found by its whole offset alone, wherever such bytes stand, and can be moved."""
    odd = int.from_bytes(NAME[:8], "little")
    pool = pack([extent(1, 0, 2, raw=NAME), extent(odd, 2, 1), extent(1, 3, 2, 3)])
    size = len(pool) // 3
    assert positions(pool, 1) == [0, 2 * size]
    assert positions(pool, odd) == [size]
    assert positions(pool, 7) == []
    assert [one[0] for one in unpack(with_offset(pool, 1, 8))] == [8, odd, 8]
    after, is_weighed = moved(pool, 1, 3, 2, Place(50, 11))
    assert list(unpack(after))[2] == (50, 11, 1.0, 0, 3, 2, 0, NO_NAME)
    assert list(unpack(after))[:2] == list(unpack(pool))[:2]
    assert not is_weighed
    assert moved(pool, 1, 0, 9, Place(50, 12))[1]
