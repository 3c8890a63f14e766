"""The directory of a journal: where the lines of each key are, and what they hold in sum.

Pure, and small: an entry is its key and a few dozen bytes a line, so that what is stored need not
be in memory to be found. Knows no file; places in it are numbers. Entries are in the order in
which they were last added to or touched. Not safe for threads: the journal has a lock for it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import orjson

from sglang_cached_addon.keys import PREFIX


class Head(NamedTuple):
    """What the beginning of a line says."""

    key: bytes
    raw: bytes
    """The name of a body that the samples' pool answers; empty if there is none."""
    since: float | None
    """Samples of the key that were stored before are no more."""
    dialect: str
    at: float
    """When its samples were stored: Unix seconds."""
    samples: int
    """How many; none in a line that only removes."""


class Place(NamedTuple):
    """Where a line is."""

    offset: int
    """In the file; while the line waits to be written, `PENDING` plus its number."""
    length: int
    """With its newline."""


PENDING = 1 << 63

# offset, length, at, samples, dialect, raw
_RECORD = struct.Struct("<QIdHB16s")
_SIZE = _RECORD.size
_NONE = bytes(16)
_ENTRY = struct.Struct(f"32s{_SIZE}s")

_PIECE = 4096
"""Entries."""


class Index:
    """The entries of a journal."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}
        """By key: the records of its lines, oldest first."""
        self._names: dict[bytes, bytes] = {}
        """Keys, by the names of bodies."""
        self._dialects: list[str] = []
        self.samples = 0
        self.bytes = 0
        """Of all lines that count."""
        self.by_dialect: Counter[str] = Counter()
        """Samples."""

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

    def places(self, key: bytes) -> list[Place]:
        """Where the lines of a key are, oldest first."""
        found = self._entries.get(key, b"")
        return [Place(offset, length) for offset, length, _, _, _, _ in _RECORD.iter_unpack(found)]

    def is_pending(self, key: bytes) -> bool:
        """Whether a line of this key waits to be written."""
        return any(place.offset >= PENDING for place in self.places(key))

    def oldest(self, key: bytes) -> float:
        """When the oldest sample of a key was stored."""
        return min(float(r[2]) for r in _RECORD.iter_unpack(self._entries[key]))

    def newest(self, key: bytes) -> float:
        """When the newest was."""
        return max(float(r[2]) for r in _RECORD.iter_unpack(self._entries[key]))

    def by_model(self) -> dict[str, int]:
        """Samples by the beginnings of their keys, in hexadecimal; looks at every key."""
        counts: Counter[bytes] = Counter()
        for key, records in tuple(self._entries.items()):
            counts[key[:PREFIX]] += sum(r[3] for r in _RECORD.iter_unpack(records))
        return {prefix.hex(): count for prefix, count in counts.items()}

    # Changes

    def add(self, head: Head, place: Place) -> None:
        """A line more, after what its `since` drops."""
        key, raw, since, dialect, at, samples = head
        offset, length = place
        records = self._entries.pop(key, b"")
        if since is not None and records:
            # What a body is answered by is still of the same key.
            raw = raw or next((r[5] for r in _RECORD.iter_unpack(records) if r[5] != _NONE), b"")
            records = self._fresh(records, since)
        if samples:
            if raw:
                self._names[raw] = key
            name = self._name(dialect)
            records += _RECORD.pack(offset, length, at, samples, name, raw or _NONE)
            self._count(dialect, samples, length)
        if records:
            self._entries[key] = records

    def put(self, key: bytes, waiting: Place, offset: int) -> None:
        """A line that waited has come to its place in the file, if it still counts."""
        records = self._entries.get(key)
        if records is None:
            return
        old = struct.pack("<Q", waiting.offset)
        for start in range(0, len(records), _SIZE):
            if records[start : start + 8] == old:
                new = struct.pack("<Q", offset)
                self._entries[key] = records[:start] + new + records[start + 8 :]
                return

    def expire(self, key: bytes, before: float) -> None:
        """Drops what was stored before a time."""
        if records := self._entries.get(key):
            if kept := self._fresh(records, before):
                self._entries[key] = kept
            else:
                del self._entries[key]

    def remove(self, key: bytes) -> None:
        records = self._entries.pop(key, b"")
        self._fresh(records, float("inf"))

    def touch(self, key: bytes) -> None:
        """It was used just now."""
        if records := self._entries.pop(key, None):
            self._entries[key] = records

    def clear(self, is_cleared: Callable[[bytes], bool] | None = None) -> None:
        """Forgets the entries whose keys are to go: all, if nothing else is said."""
        if is_cleared is None:  # at once, however much there is
            self._entries, self._names, self.by_dialect = {}, {}, Counter()
            self.samples = self.bytes = 0
            return
        for key in [key for key in self._entries if is_cleared(key)]:
            self.remove(key)

    def has(self, key: bytes, place: Place) -> bool:
        """Whether a line counts."""
        return place in self.places(key)

    def lose(self, key: bytes, place: Place) -> None:
        """Forgets one line."""
        records = self._entries.get(key, b"")
        for start in range(0, len(records), _SIZE):
            record = records[start : start + _SIZE]
            if _RECORD.unpack(record)[:2] == place:
                self._fresh(record, float("inf"))
                if kept := records[:start] + records[start + _SIZE :]:
                    self._entries[key] = kept
                else:
                    del self._entries[key]
                return

    # To be kept, so that a large journal need not be read to be opened.

    def copy(self) -> Index:
        """One that is not changed any more: for `dump`, which takes its time. It finds no names."""
        other = Index()
        other._entries, other._dialects = self._entries.copy(), self._dialects.copy()
        other.samples, other.bytes = self.samples, self.bytes
        other.by_dialect = self.by_dialect.copy()
        return other

    def dump(self) -> Iterator[bytes]:
        """What `load` reads, in pieces: between them, other threads have their turn. Nothing may
        wait to be written."""
        items = self._entries.items()
        head = {
            "dialects": self._dialects,
            "samples": self.samples,
            "bytes": self.bytes,
            "by_dialect": dict(self.by_dialect),
            "entries": sum(len(records) == _SIZE for _, records in items),
        }
        yield orjson.dumps(head) + b"\n"
        one = (key + records for key, records in items if len(records) == _SIZE)
        more = (
            key + len(records).to_bytes(4, "little") + records
            for key, records in items
            if len(records) != _SIZE
        )
        for entries in (one, more):
            while piece := b"".join(islice(entries, _PIECE)):
                yield piece

    @classmethod
    def load(cls, data: bytes) -> Index:
        """Raises ValueError, KeyError or TypeError for what `dump` did not write; it does not find
        damage."""
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
        names = {records[-16:]: key for key, records in self._entries.items()}
        for key, records in self._entries.items():
            if len(records) != _SIZE:
                names |= {r[5]: key for r in _RECORD.iter_unpack(records)}
        names.pop(_NONE, None)
        self._names = names
        self._dialects = [str(name) for name in head["dialects"]]
        self.samples, self.bytes = int(head["samples"]), int(head["bytes"])
        self.by_dialect = Counter(head["by_dialect"])
        return self

    def _fresh(self, records: bytes, since: float) -> bytes:
        """Those of some records that are not older; the others are not counted any more."""
        kept = []
        for start in range(0, len(records), _SIZE):
            record = records[start : start + _SIZE]
            _, length, at, count, name, raw = _RECORD.unpack(record)
            if at >= since:
                kept.append(record)
            else:
                self._count(self._dialects[name], -count, -length)
                self._names.pop(raw, None)
        return b"".join(kept)

    def _count(self, dialect: str, samples: int, length: int) -> None:
        self.samples += samples
        self.bytes += length
        self.by_dialect[dialect] += samples
        if samples < 0 and not self.by_dialect[dialect]:
            del self.by_dialect[dialect]

    def _name(self, dialect: str) -> int:
        try:
            return self._dialects.index(dialect)
        except ValueError:
            self._dialects.append(dialect)
            return len(self._dialects) - 1
