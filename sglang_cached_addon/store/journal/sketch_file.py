"""`cache.sketches`: an SQLite file with the numbers of each call's sketch, and where its line is.

An index of whole words, where the words are these numbers; nothing that was asked is in it. Several
processes may write to it: each goes on where the last one ended. It may be lost at any time. Knows
offsets in a journal, and nothing of what stands there.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from math import log2
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import orjson

from sglang_cached_addon.store.files import private

VERSION = 2
"""Raised when the tables change, or sketches are made in another way."""

NEWEST = 256
"""Of the calls that have a number in common, so many are looked at, those stored last."""

_SCHEMA = """
    DROP TABLE IF EXISTS mark;
    DROP TABLE IF EXISTS sketch;
    CREATE TABLE mark (offset INTEGER, tail INTEGER);
    CREATE VIRTUAL TABLE sketch USING fts5(
        numbers, content='', detail=none, columnsize=0, tokenize='ascii');
"""
# All in one step, and in one row: for each the interpreter is let go of, and taken again.
_ADD = """
    INSERT INTO sketch (rowid, numbers)
    SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"""
_FIND = """
    SELECT group_concat(rowid) FROM (
        SELECT rowid FROM sketch WHERE sketch MATCH ? ORDER BY rowid DESC LIMIT ?)"""


class Mark(NamedTuple):
    """How far a journal was read."""

    offset: int = 0
    tail: int = 0
    """Tells what stands before the offset from what stands there in other files."""


class Overtaken(Exception):
    """Another process has written what was to be written."""


class SketchFile:
    """The open file. Its methods raise `sqlite3.Error`."""

    def __init__(self, path: Path, *, is_new: bool) -> None:
        """One that `is_new` is made, if it is missing; raises OSError, too."""
        if is_new:
            with open(path, "ab", opener=private):
                pass
        uri = f"{path.absolute().as_uri()}?mode=rw"
        self._connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        try:
            if is_new:
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        # What is lost in a power cut is made anew, as the mark tells.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            self._connection.executescript(f"{_SCHEMA} PRAGMA user_version = {VERSION};")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    @property
    def mark(self) -> Mark:
        found = self._connection.execute("SELECT offset, tail FROM mark").fetchone()
        return Mark(*found) if found else Mark()

    def add(self, sketches: Sequence[tuple[int, str]], before: Mark, after: Mark) -> None:
        """Adds sketches in `words`, each with the offset of its line: of the lines between two
        marks. Raises `Overtaken`. Those that are added from the beginning replace all."""
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            if before.offset == 0:
                connection.execute("INSERT INTO sketch (sketch) VALUES ('delete-all')")
            elif self.mark != before:
                raise Overtaken
            connection.execute(_ADD, (orjson.dumps(sketches).decode(),))
            connection.execute("DELETE FROM mark")
            connection.execute("INSERT INTO mark VALUES (?, ?)", after)

    def find(self, numbers: Collection[int], count: int) -> list[int]:
        """The offsets of the calls that have most in common with these numbers; what few have
        counts more."""
        scores: Counter[str] = Counter()
        for number in numbers:
            (found,) = self._connection.execute(_FIND, (f'"{number:x}"', NEWEST)).fetchone()
            offsets = found.split(",") if found else []
            weight = 8 + int(8 * log2(NEWEST / max(1, len(offsets))))
            for offset in offsets:
                scores[offset] += weight
        return [int(offset) for offset, _ in scores.most_common(count)]


def words(numbers: Collection[int]) -> str:
    """A sketch as it is kept."""
    return " ".join([f"{number:x}" for number in numbers])
