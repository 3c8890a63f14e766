"""The index of a journal: where the lines of each key are, and what they hold in sum.

Pure, and small: an entry is its key and a few dozen bytes for each extent (see `extents`), so that
what is stored need not be in memory to be found. Knows no file: places in it are numbers. The
entries are in the order in which they were last added to or touched. Not safe for threads: `queue`
has a lock for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice

import orjson

from sglang_cached_addon.core.cache import counts
from sglang_cached_addon.store.journal import extents as packed
from sglang_cached_addon.store.journal.extents import NO_NAME, RECORD, SIZE, Extent, Head, Place
from sglang_cached_addon.store.totals import Totals

_ENTRY = struct.Struct(f"32s{SIZE}s")
"""A key with one extent, as `Index.dump` writes it."""

_PIECE = 4096
"""Entries that `Index.dump` gives at a time."""


class Index(Totals):
    """The entries of a journal, and what is in them in sum. `bytes` are those of all lines that
    have samples in the index."""

    def __init__(self) -> None:
        super().__init__()
        self._entries: dict[bytes, bytes] = {}
        """For each key, the packed extents of its pool, in the order of the pool."""
        self._names: dict[bytes, bytes] = {}
        """The key of each body that has a name."""
        self._dialects: list[str] = []
        """The names of dialects, by the numbers that extents have for them."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[bytes]:
        """The keys, least recently touched first."""
        return iter(self._entries)

    def find(self, raw: bytes) -> bytes | None:
        """The key whose pool answers a body of this name."""
        return self._names.get(raw)

    def extents(self, key: bytes) -> list[Extent]:
        """The extents of a pool, in its order."""
        return [packed.extent_of(record) for record in packed.unpack(self._entries.get(key, b""))]

    def extents_of(self, key: bytes, place: Place) -> list[Extent]:
        """The extents of a pool that are of one line."""
        records = self._entries.get(key, b"")
        found = packed.positions(records, place.offset)
        return [packed.extent_of(RECORD.unpack_from(records, at)) for at in found]

    def count(self, key: bytes) -> int:
        """The number of samples of a key."""
        return sum(record[5] for record in packed.unpack(self._entries.get(key, b"")))

    def end(self, key: bytes) -> int:
        """The slot behind the last sample of a key."""
        records = self._entries.get(key)
        return packed.end_of(records) if records else 0

    def weight(self, key: bytes) -> int:
        """The bytes of a key's lines."""
        return packed.weight_of(self._entries.get(key, b""))

    def is_within(self, key: bytes, since: float, now: float) -> bool:
        """Whether all samples of a key count: see `cache.counts`."""
        return all(counts(r[2], since, now) for r in packed.unpack(self._entries.get(key, b"")))

    # Changes

    def add(self, head: Head, place: Place) -> None:
        """Adds a line. Its samples take their slots; a line without samples removes the pool."""
        key, raw, slot, dialect, at, count = head
        if not count:
            self.remove(key)
            return
        offset, length = place
        records = self._entries.pop(key, b"")
        new = (offset, length, at, 0, slot, count, self._number(dialect), raw or NO_NAME)
        if not records or packed.end_of(records) <= slot:
            self.tally(key, dialect, count, length)
            records += RECORD.pack(*new)
        else:
            self._forget(key, records)
            records = packed.with_extent(records, new)
            self._note(key, records)
        if raw:
            self._names[raw] = key
        self._entries[key] = records

    def put(self, key: bytes, waiting: Place, offset: int) -> None:
        """Notes that a line that waited is in the file, at `offset`, if it still counts."""
        if records := self._entries.get(key, b""):
            self._entries[key] = packed.with_offset(records, waiting.offset, offset)

    def move(self, key: bytes, offset: int, slot: int, count: int, place: Place) -> None:
        """Notes that `count` samples of the line at `offset`, from `slot` on, are the whole of
        another line now."""
        if before := self._entries.get(key, b""):
            after, is_weighed = packed.moved(before, offset, slot, count, place)
            if is_weighed:
                self._weigh(key, before, -1)
                self._weigh(key, after, 1)
            self._entries[key] = after

    def expire(self, key: bytes, since: float, now: float) -> None:
        """Drops the samples of a key that do not count: see `cache.counts`."""
        self._drop(key, lambda record: not counts(record[2], since, now))

    def lose(self, key: bytes, place: Place) -> None:
        """Drops the samples of one line."""
        self._drop(key, lambda record: record[0] == place.offset)

    def remove(self, key: bytes) -> None:
        """Drops all samples of a key."""
        if records := self._entries.pop(key, None):
            self._forget(key, records)

    def _drop(self, key: bytes, is_dropped: Callable[[packed.Record], bool]) -> None:
        records = self._entries.get(key, b"")
        kept = packed.pack(record for record in packed.unpack(records) if not is_dropped(record))
        if len(kept) == len(records):
            return
        self._forget(key, records)
        self._entries[key] = kept
        self._note(key, kept)
        if not kept:
            del self._entries[key]

    def touch(self, key: bytes) -> None:
        """Notes that a key was used just now."""
        if records := self._entries.pop(key, None):
            self._entries[key] = records

    def clear(self) -> tuple[dict[bytes, bytes], ...]:
        """Drops all entries, however many there are; returns what they were in, which nobody has
        any more."""
        former = self._entries, self._names
        self._entries, self._names = {}, {}
        self.empty()
        return former

    # The index as bytes, so that a large journal need not be read to be opened

    def dump(self) -> Iterator[bytes]:
        """What `load` reads, in pieces. No line may wait to be written, and the index must not
        change meanwhile."""
        items = self._entries.items()
        head = {
            "dialects": self._dialects,
            **self.as_json(),
            "entries": sum(len(records) == SIZE for _, records in items),
        }
        yield orjson.dumps(head) + b"\n"
        one = (key + records for key, records in items if len(records) == SIZE)
        more = (
            key + len(held).to_bytes(4, "little") + held for key, held in items if len(held) != SIZE
        )
        for entries in (one, more):
            while piece := b"".join(islice(entries, _PIECE)):
                yield piece

    @classmethod
    def load(cls, data: bytes) -> Index:
        """Raises ValueError, KeyError or TypeError for bytes that `dump` did not write; it does
        not find damage."""
        self = cls()
        start = data.index(b"\n") + 1
        head = orjson.loads(data[:start])
        end = start + head["entries"] * _ENTRY.size
        if end > len(data):
            raise ValueError("cut short")
        self._entries = dict(_ENTRY.iter_unpack(memoryview(data)[start:end]))
        while end < len(data):
            key, size = data[end : end + 32], int.from_bytes(data[end + 32 : end + 36], "little")
            end += 36 + size
            self._entries[key] = data[end - size : end]
        self._names = {records[-16:]: key for key, records in self._entries.items()}
        for key, records in self._entries.items():
            if len(records) != SIZE:
                self._names |= {record[7]: key for record in packed.unpack(records)}
        self._names.pop(NO_NAME, None)
        self._dialects = [str(name) for name in head["dialects"]]
        self.take_json(head)
        return self

    # Counting

    def _forget(self, key: bytes, records: bytes) -> None:
        self._weigh(key, records, -1)
        for record in packed.unpack(records):
            self._names.pop(record[7], None)

    def _note(self, key: bytes, records: bytes) -> None:
        self._weigh(key, records, 1)
        self._names |= {record[7]: key for record in packed.unpack(records) if record[7] != NO_NAME}

    def _weigh(self, key: bytes, records: bytes, sign: int) -> None:
        """Adds the extents of a key to the counts, or takes them away; a line's bytes once, however
        many extents are of it."""
        lines: set[int] = set()
        for offset, length, _, _, _, count, number, _ in packed.unpack(records):
            size = 0 if offset in lines else sign * length
            self.tally(key, self._dialects[number], sign * count, size)
            lines.add(offset)

    def _number(self, dialect: str) -> int:
        try:
            return self._dialects.index(dialect)
        except ValueError:
            self._dialects.append(dialect)
            return len(self._dialects) - 1
