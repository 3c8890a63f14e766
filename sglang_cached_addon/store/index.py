"""The directory of a journal: where the lines of each key are, and what they hold in sum.

Pure, and small: an entry is its key and a few dozen bytes a line, so that what is stored need not
be in memory to be found. Knows no file; places in it are numbers. A pool is runs of samples, each
at its slots, which no two of them share: see `lines`. Entries are in the order in which they were
last added to or touched. Not safe for threads: the journal has a lock for it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import orjson

from sglang_cached_addon.core.cache import counts
from sglang_cached_addon.core.keys import PREFIX

MAX_SLOT = 1_000_000_000
"""Beyond what a pool may have."""


class Head(NamedTuple):
    """What the beginning of a line says."""

    key: bytes
    raw: bytes
    """The name of a body that the samples' pool answers; empty if there is none."""
    slot: int
    """Of its first sample."""
    dialect: str
    at: float
    """When its samples were stored: Unix seconds."""
    samples: int
    """How many; none in a line that removes all there are."""


class Place(NamedTuple):
    """Where a line is."""

    offset: int
    """In the file, plus `FILE` times the file's number; while the line waits to be written,
    `PENDING` plus its own number."""
    length: int
    """With its newline."""


class Run(NamedTuple):
    """Samples of a pool that stand side by side, in a line as well."""

    place: Place
    at: float
    skip: int
    """Samples of the line in front of them, which count no more."""
    slot: int
    samples: int
    """How many."""


PENDING = 1 << 63
FILE = 1 << 48
FILES = 1 << 14
"""So many files have numbers of their own, which are used again after that."""

# offset, length, at, skip, slot, count, dialect, raw
_RECORD = struct.Struct("<QIdIIIB16s")
_SIZE = _RECORD.size
_NONE = bytes(16)
_ENTRY = struct.Struct(f"32s{_SIZE}s")

_Record = tuple[int, int, float, int, int, int, int, bytes]

_PIECE = 4096
"""Entries."""


class Index:
    """The entries of a journal."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}
        """By key: the records of its runs, in the order of the pool."""
        self._names: dict[bytes, bytes] = {}
        """Keys, by the names of bodies."""
        self._dialects: list[str] = []
        self.samples = 0
        self.bytes = 0
        """Of all lines that count."""
        self.by_dialect: Counter[str] = Counter()
        """Samples."""
        self._by_model: Counter[bytes] = Counter()
        """Samples, by what keys begin with."""

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

    def runs(self, key: bytes) -> list[Run]:
        """The pool of a key, in its order."""
        return [_run(record) for record in _RECORD.iter_unpack(self._entries.get(key, b""))]

    def runs_of(self, key: bytes, place: Place) -> list[Run]:
        """What counts of one line; a pool may have many."""
        records = self._entries.get(key, b"")
        return [_run(_RECORD.unpack_from(records, at)) for at in _places(records, place.offset)]

    def count(self, key: bytes) -> int:
        """How many samples a key has."""
        return sum(r[5] for r in _RECORD.iter_unpack(self._entries.get(key, b"")))

    def end(self, key: bytes) -> int:
        """The slot behind the last sample of a key."""
        records = self._entries.get(key)
        return _end(records) if records else 0

    def weight(self, key: bytes) -> int:
        """Bytes of a key's lines."""
        records = self._entries.get(key, b"")
        return sum({r[0]: r[1] for r in _RECORD.iter_unpack(records)}.values())

    def is_within(self, key: bytes, since: float, now: float) -> bool:
        """Whether all samples of a key count: see `cache.counts`."""
        records = self._entries.get(key, b"")
        return all(counts(r[2], since, now) for r in _RECORD.iter_unpack(records))

    def by_model(self) -> dict[str, int]:
        """Samples by the beginnings of their keys, in hexadecimal."""
        return {prefix.hex(): count for prefix, count in self._by_model.items()}

    # Changes

    def add(self, head: Head, place: Place) -> None:
        """A line more, whose samples come to their slots."""
        key, raw, slot, dialect, at, count = head
        if not count:
            self.remove(key)
            return
        offset, length = place
        records = self._entries.pop(key, b"")
        new = (offset, length, at, 0, slot, count, self._name(dialect), raw or _NONE)
        if not records or _end(records) <= slot:
            self._count(key, dialect, count, length)
            records += _RECORD.pack(*new)
        else:
            self._forget(key, records)
            records = _with(records, new)
            self._note(key, records)
        if raw:
            self._names[raw] = key
        self._entries[key] = records

    def put(self, key: bytes, waiting: Place, offset: int) -> None:
        """A line that waited has come to its place in the file, if it still counts."""
        records = self._entries.get(key, b"")
        new = struct.pack("<Q", offset)
        for at in _places(records, waiting.offset):
            records = records[:at] + new + records[at + 8 :]
        if records:
            self._entries[key] = records

    def move(self, key: bytes, offset: int, slot: int, count: int, place: Place) -> None:
        """So many samples of a line, those at `slot` and behind it, are all of another line now."""
        records = before = self._entries.get(key, b"")
        is_weighed = False
        for at in _places(records, offset):
            _, length, stored_at, _, has, n, dialect, raw = _RECORD.unpack_from(records, at)
            if slot <= has < slot + count:
                new = (*place, stored_at, has - slot, has, n, dialect, raw)
                records = records[:at] + _RECORD.pack(*new) + records[at + _SIZE :]
                is_weighed |= length != place.length
        if is_weighed:
            self._weigh(key, before, -1)
            self._weigh(key, records, 1)
        if records:
            self._entries[key] = records

    def expire(self, key: bytes, since: float, now: float) -> None:
        """Drops what does not count."""
        self._drop(key, lambda record: not counts(record[2], since, now))

    def lose(self, key: bytes, place: Place) -> None:
        """Forgets one line."""
        self._drop(key, lambda record: record[0] == place.offset)

    def _drop(self, key: bytes, is_dropped: Callable[[_Record], bool]) -> None:
        records = self._entries.get(key, b"")
        all_of_it = list(_RECORD.iter_unpack(records))
        kept = [record for record in all_of_it if not is_dropped(record)]
        if len(kept) == len(all_of_it):
            return
        self._forget(key, records)
        if kept:
            self._entries[key] = rest = _pack(kept)
            self._note(key, rest)
        else:
            del self._entries[key]

    def remove(self, key: bytes) -> None:
        self._drop(key, lambda record: True)

    def touch(self, key: bytes) -> None:
        """It was used just now."""
        if records := self._entries.pop(key, None):
            self._entries[key] = records

    def clear(self, is_cleared: Callable[[bytes], bool] | None = None) -> None:
        """Forgets the entries whose keys are to go: all, if nothing else is said."""
        if is_cleared is None:  # at once, however much there is
            self._entries, self._names = {}, {}
            self.by_dialect, self._by_model = Counter(), Counter()
            self.samples = self.bytes = 0
            return
        for key in [key for key in self._entries if is_cleared(key)]:
            self.remove(key)

    # To be kept, so that a large journal need not be read to be opened.

    def dump(self) -> Iterator[bytes]:
        """What `load` reads, in pieces. Nothing may wait to be written, or change meanwhile."""
        items = self._entries.items()
        head = {
            "dialects": self._dialects,
            "samples": self.samples,
            "bytes": self.bytes,
            "by_dialect": dict(self.by_dialect),
            "by_model": self.by_model(),
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
                names |= {r[7]: key for r in _RECORD.iter_unpack(records)}
        names.pop(_NONE, None)
        self._names = names
        self._dialects = [str(name) for name in head["dialects"]]
        self.samples, self.bytes = int(head["samples"]), int(head["bytes"])
        self.by_dialect = Counter(head["by_dialect"])
        by_model = {bytes.fromhex(prefix): int(n) for prefix, n in head["by_model"].items()}
        self._by_model = Counter(by_model)
        return self

    def _forget(self, key: bytes, records: bytes) -> None:
        """The runs of a key are not counted any more, and their names are not known."""
        self._weigh(key, records, -1)
        for record in _RECORD.iter_unpack(records):
            self._names.pop(record[7], None)

    def _note(self, key: bytes, records: bytes) -> None:
        self._weigh(key, records, 1)
        self._names |= {r[7]: key for r in _RECORD.iter_unpack(records) if r[7] != _NONE}

    def _weigh(self, key: bytes, records: bytes, sign: int) -> None:
        """Counts the runs of a key, or counts them no more; a line once, however many runs are of
        it."""
        lines: set[int] = set()
        for offset, length, _, _, _, count, name, _ in _RECORD.iter_unpack(records):
            size = 0 if offset in lines else sign * length
            self._count(key, self._dialects[name], sign * count, size)
            lines.add(offset)

    def _count(self, key: bytes, dialect: str, samples: int, length: int) -> None:
        self.samples += samples
        self.bytes += length
        self.by_dialect[dialect] += samples
        self._by_model[key[:PREFIX]] += samples
        if samples < 0 and not self.by_dialect[dialect]:
            del self.by_dialect[dialect]
        if samples < 0 and not self._by_model[key[:PREFIX]]:
            del self._by_model[key[:PREFIX]]

    def _name(self, dialect: str) -> int:
        try:
            return self._dialects.index(dialect)
        except ValueError:
            self._dialects.append(dialect)
            return len(self._dialects) - 1


def _run(record: _Record) -> Run:
    offset, length, at, skip, slot, count, _, _ = record
    return Run(Place(offset, length), at, skip, slot, count)


def _places(records: bytes, offset: int) -> list[int]:
    """Where the records of a line are among a key's."""
    wanted = struct.pack("<Q", offset)
    found, at = [], records.find(wanted)
    while at >= 0:
        if at % _SIZE == 0:
            found.append(at)
        at = records.find(wanted, at + 1)
    return found


def _end(records: bytes) -> int:
    """The slot behind the last one of a pool."""
    last: _Record = _RECORD.unpack_from(records, len(records) - _SIZE)
    return last[4] + last[5]


def _with(records: bytes, new: _Record) -> bytes:
    """A pool in which a run has taken its slots, whoever had them before."""
    start, end = new[4], new[4] + new[5]
    raw = new[7]
    runs: list[_Record] = []
    for run in _RECORD.iter_unpack(records):
        rest = list(_outside(run, start, end))
        if not rest and raw == _NONE:
            raw = run[7]  # what a body is answered by is still of the same key
        runs += rest
    runs.append((*new[:7], raw))
    return _pack(sorted(runs, key=lambda run: run[4]))


def _outside(run: _Record, start: int, end: int) -> Iterator[_Record]:
    """What is left of a run where others have the slots from `start` to `end`."""
    offset, length, at, skip, slot, count, dialect, raw = run
    if slot < start:
        yield offset, length, at, skip, slot, min(count, start - slot), dialect, raw
    if slot + count > end:
        gone = max(0, end - slot)
        yield offset, length, at, skip + gone, slot + gone, count - gone, dialect, raw


def _pack(records: Iterable[_Record]) -> bytes:
    return b"".join(_RECORD.pack(*record) for record in records)
