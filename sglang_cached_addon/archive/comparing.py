"""Two caches compared: the same calls, and what was answered to them on each side.

A side is what is stored in a folder, or a part of that: of one model, or what a run has taken.
Calls are the same if their canonical content is, whichever model they are of. Where their lines
are is sorted in a file, so that memory does not grow with what is stored. Folders may be other
processes'; they are not changed. Synchronous.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path

import orjson

from sglang_cached_addon import dialects
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.dialects.display import GENERAL, Display, Shown, display_of
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal.extents import Place
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.lines import (
    BROKEN,
    OtherVersion,
    call_of,
    samples_of,
    scan,
)
from sglang_cached_addon.store.journal.reader import FileReader

_SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE line (side INTEGER, key BLOB, at INTEGER, length INTEGER,
                       PRIMARY KEY (side, key, at)) WITHOUT ROWID;
    CREATE TABLE call (name BLOB, side INTEGER, key BLOB, at INTEGER,
                       PRIMARY KEY (name, side)) WITHOUT ROWID;
    BEGIN;
"""
# In the order of the first side, then what only the second has.
_PAIRS = """
    SELECT max(CASE side WHEN 0 THEN key END), max(CASE side WHEN 1 THEN key END)
    FROM call GROUP BY name
    ORDER BY min(side), min(CASE side WHEN 0 THEN at END), min(at)"""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things that are compared."""

    journal: Path
    is_wanted: Callable[[bytes], bool] = lambda key: True
    """Whether a pool belongs to it, by its key."""
    places: Callable[[bytes], Sequence[int]] | None = None
    """The places of a pool that belong to it; all where it is None."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a sample says."""

    text: str
    end: str
    """How it has ended, as its finish reason; empty where nobody knows."""


class Verdict(StrEnum):
    """What came of comparing a call."""

    SAME = "same"
    DIFFERS = "differs"
    ONLY_A = "only_a"
    ONLY_B = "only_b"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a side has of a call."""

    key: bytes
    dialect: str
    content: bytes
    samples: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Compared:
    """A call, and what both sides have of it; one of them may have nothing."""

    a: Answered | None
    b: Answered | None

    @property
    def verdict(self) -> Verdict:
        """Two pools are the same as far as both go: one may have more samples."""
        if self.a is None or self.b is None:
            return Verdict.ONLY_B if self.a is None else Verdict.ONLY_A
        pairs = zip(self.a.samples, self.b.samples, strict=False)
        return Verdict.SAME if all(one == other for one, other in pairs) else Verdict.DIFFERS

    @property
    def call(self) -> Answered:
        """Either of them: the call is the same."""
        found = self.a or self.b
        assert found
        return found


def compare(a: Side, b: Side, progress: Callable[[int], object] = lambda lines: None) -> Iterator[
    Compared
]:  # fmt: skip
    """All calls that one of two sides has; `progress` is told how many lines were read. Raises
    `StoreError`."""
    with closing(sqlite3.connect("", isolation_level=None)) as database:  # a file without a name
        database.executescript(_SCHEMA)
        readers = [_Reader(database, number, side) for number, side in enumerate((a, b))]
        for reader in readers:
            reader.read(progress)
        for keys in database.execute(_PAIRS):
            found = [
                reader.answered(key) if key else None
                for reader, key in zip(readers, keys, strict=True)
            ]
            if any(found):
                yield Compared(*found)


class _Reader:
    """Reads one side."""

    def __init__(self, database: sqlite3.Connection, number: int, side: Side) -> None:
        self._database, self._number, self._side = database, number, side
        self._displays: dict[str, Display] = {
            dialect.name: display_of(dialect) for dialect in dialects.installed().values()
        }
        try:
            self._file = FileReader(side.journal)
        except OSError as e:
            raise StoreError(f"cannot read {side.journal}: {e.strerror}") from e

    def read(self, progress: Callable[[int], object]) -> None:
        """Finds out where the lines of each pool are."""
        add = self._database.execute
        at = 0
        with self._file.open() as lines:
            for count, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    return  # it is being written
                try:
                    key = scan(line).key
                except (OtherVersion, *BROKEN):
                    at += len(line)
                    continue
                if self._side.is_wanted(key):
                    values = (self._number, key, at, len(line))
                    add("INSERT INTO line VALUES (?, ?, ?, ?)", values)
                    if call := call_of(line):
                        name = blake2b(call[1].encode() + b"\0" + call[2], digest_size=16).digest()
                        named = (name, self._number, key, at)
                        # Of models that are both on this side, the one that was asked last.
                        add("INSERT OR REPLACE INTO call VALUES (?, ?, ?, ?)", named)
                at += len(line)
                if count % 10_000 == 0:
                    progress(count)

    def answered(self, key: bytes) -> Answered | None:
        """What is stored of a pool; None if that is nothing by now."""
        index, content, dialect = Index(), b"", ""
        held: dict[int, list[Sample]] = {}
        for at, length in self._database.execute(
            "SELECT at, length FROM line WHERE side = ? AND key = ? ORDER BY at",
            (self._number, key),
        ):
            line = self._file.read(at, length, waits=True) or b""
            try:
                head, held[at] = scan(line), samples_of(line, key)
            except (OtherVersion, *BROKEN):  # somebody has cut the file
                continue
            index.add(head, Place(at, length))
            dialect = head.dialect or dialect
            if call := call_of(line):
                content = call[2]
        samples: list[Sample] = []
        for extent in index.extents(key):
            found = held[extent.place.offset]
            samples += found[extent.skip : extent.skip + extent.samples]
        if self._side.places:
            samples = [samples[at] for at in self._side.places(key) if at < len(samples)]
        said = [self._said(dialect, sample.answer) for sample in samples]
        return Answered(key, dialect, content, said) if said else None

    def _said(self, dialect: str, answer: bytes) -> Said:
        reader = self._displays.get(dialect, GENERAL).reader()
        reader.add(orjson.loads(answer))
        shown = next(iter(reader.samples()), Shown(0, ""))
        return Said(shown.text, shown.facts[0] if shown.facts else "")
