"""The extents of one pool, packed into bytes, so that an entry of the index takes little memory.

An extent is a group of samples that stand side by side in a pool and in one line of the journal.
Each extent has its slots, which no other extent of the pool shares. Pure functions on bytes: knows
neither keys nor files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

MAX_SLOT = 1_000_000_000
"""No slot of a pool is as high as this."""

PENDING = 1 << 63
"""Offsets from here on stand for lines that wait to be written."""

FILE = 1 << 48
"""An offset is the offset in its file, plus this times the number of the file."""

FILES = 1 << 14
"""File numbers are below this; then they begin again with 0."""


class Head(NamedTuple):
    """What the beginning of a line says."""

    key: bytes
    raw: bytes
    """The name of a body that the pool answers; empty if there is none."""
    slot: int
    """The slot of the line's first sample."""
    dialect: str
    at: float
    """When the samples were stored: Unix seconds."""
    samples: int
    """The number of samples; 0 in a line that removes the pool."""


class Place(NamedTuple):
    """Where a line is."""

    offset: int
    """The offset in the file, plus `FILE` times the file's number; for a line that waits to be
    written, `PENDING` plus a number of its own."""
    length: int
    """The bytes of the line, with its newline."""


class Extent(NamedTuple):
    """Samples that stand side by side in a pool and in a line."""

    place: Place
    at: float
    """When the samples were stored: Unix seconds."""
    skip: int
    """How many samples of the line stand before the extent and do not count any more."""
    slot: int
    """The slot of the first sample."""
    samples: int
    """The number of samples."""


Record = tuple[int, int, float, int, int, int, int, bytes]
"""An extent as it is packed: offset, length, at, skip, slot, count, number of the dialect, raw."""

RECORD = struct.Struct("<QIdIIIB16s")
SIZE = RECORD.size
NO_NAME = bytes(16)
"""Stands for the name of a body where there is none."""

_OFFSET = struct.Struct("<Q")


def unpack(records: bytes) -> Iterator[Record]:
    return RECORD.iter_unpack(records)


def pack(extents: Iterable[Record]) -> bytes:
    return b"".join(RECORD.pack(*extent) for extent in extents)


def extent_of(record: Record) -> Extent:
    offset, length, at, skip, slot, count, _, _ = record
    return Extent(Place(offset, length), at, skip, slot, count)


def positions(records: bytes, offset: int) -> list[int]:
    """The positions, in the packed bytes, of the extents that are of the line at `offset`."""
    wanted = _OFFSET.pack(offset)
    found, at = [], records.find(wanted)
    while at >= 0:
        if at % SIZE == 0:
            found.append(at)
        at = records.find(wanted, at + 1)
    return found


def with_offset(records: bytes, before: int, after: int) -> bytes:
    """The same extents, where the line at the offset `before` is at the offset `after` now."""
    new = _OFFSET.pack(after)
    for at in positions(records, before):
        records = records[:at] + new + records[at + _OFFSET.size :]
    return records


def moved(records: bytes, offset: int, slot: int, count: int, place: Place) -> tuple[bytes, bool]:
    """The same extents, where `count` samples of the line at `offset`, from `slot` on, are the
    whole of another line now; and whether that line has another length."""
    is_longer_or_shorter = False
    for at in positions(records, offset):
        _, length, stored_at, _, has, samples, dialect, raw = RECORD.unpack_from(records, at)
        if slot <= has < slot + count:
            new = (*place, stored_at, has - slot, has, samples, dialect, raw)
            records = records[:at] + RECORD.pack(*new) + records[at + SIZE :]
            is_longer_or_shorter |= length != place.length
    return records, is_longer_or_shorter


def weight_of(records: bytes) -> int:
    """The bytes of the lines that the extents are of."""
    return sum({offset: length for offset, length, *_ in unpack(records)}.values())


def end_of(records: bytes) -> int:
    """The slot behind the last sample of a pool that is not empty."""
    last: Record = RECORD.unpack_from(records, len(records) - SIZE)
    return last[4] + last[5]


def with_extent(records: bytes, new: Record) -> bytes:
    """The extents of a pool in which a new extent has taken its slots from those that had them."""
    start, end = new[4], new[4] + new[5]
    raw = new[7]
    extents: list[Record] = []
    for extent in unpack(records):
        left = list(_outside(extent, start, end))
        if not left and raw == NO_NAME:
            raw = extent[7]  # the body is of the same key as before, and so is its answer
        extents += left
    extents.append((*new[:7], raw))
    return pack(sorted(extents, key=lambda extent: extent[4]))


def _outside(extent: Record, start: int, end: int) -> Iterator[Record]:
    """The parts of an extent that lie outside the slots from `start` to `end`."""
    offset, length, at, skip, slot, count, dialect, raw = extent
    if slot < start:
        yield offset, length, at, skip, slot, min(count, start - slot), dialect, raw
    if slot + count > end:
        gone = max(0, end - slot)
        yield offset, length, at, skip + gone, slot + gone, count - gone, dialect, raw
