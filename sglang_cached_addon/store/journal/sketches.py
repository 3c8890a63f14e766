"""Which calls of a journal are likely to be near to another one, by their sketches.

A thread follows the journal from when somebody asks for the first time, and keeps the sketches of
its calls (see `sketch_file`). Where there can be no such file, the journal is read whenever
somebody asks, as far as time allows.
"""

from __future__ import annotations

import heapq
import logging
import os
import threading
import time
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from sglang_cached_addon.core.nearest import StoredCall
from sglang_cached_addon.core.sketch import sketch
from sglang_cached_addon.store.journal.lines import BROKEN, call_of
from sglang_cached_addon.store.journal.reader import calls_of

if TYPE_CHECKING:  # not in each build of Python there is SQLite
    from sglang_cached_addon.store.journal.sketch_file import Mark, SketchFile

LOOK_SECONDS = 1.0
"""How often it is looked whether the journal has grown, once somebody has asked."""

TURN_SECONDS = 0.0005
"""How long the thread keeps the interpreter before others may have it."""

CANDIDATES = 64
"""So many calls are found at most."""

_BATCH = 512
"""Calls that are written in one go."""

_SCANNED = 100_000
"""Calls that are read where there is no file of sketches."""

_NEWEST = 4 << 20
"""The bytes at the journal's end that are read while the file of sketches is not up to date."""

logger = logging.getLogger(__name__)


class Alike(NamedTuple):
    """Calls that are likely to be near to another one, the likeliest first."""

    calls: list[StoredCall]
    share: float = 1.0
    """The part of the journal that was looked through."""


class Sketches:
    """The sketches of one journal. For any thread."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._path = journal.with_name("cache.sketches")
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        """How often somebody has asked, and how many of them all is there for."""
        self._share = 0.0
        self._done = (-1, -1)
        """The inode and the size of the journal that was looked through last."""
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def alike(self, dialect: str, content: bytes, seconds: float) -> Alike:
        """The stored calls of an API that are likely to be near to one. Waits so many seconds for
        what is stored by now to be looked through."""
        numbers = sketch(dialect, content)
        share = self._wait(seconds)
        try:
            with self._file(is_new=False) as file:
                offsets = file.find(numbers, CANDIDATES)
        except Exception as e:  # whatever it is: nothing depends on the file
            logger.debug("%s: %s", self._path, e)
            scanned = calls_of(self._journal, _SCANNED, seconds)
            return Alike(likest(scanned, dialect, numbers), share)
        calls = [call for call in self._calls_at(offsets) if call[1] == dialect]
        if share < 1.0:  # what people ask about was often stored just now
            newest = calls_of(self._journal, _SCANNED, seconds, _NEWEST)
            calls = likest([*newest, *calls], dialect, numbers)
        return Alike(list({call[0]: call for call in calls}.values()), share)

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()

    def _wait(self, seconds: float) -> float:
        """Has the thread look through what is stored by now; returns the part that it has looked
        through when the time is over."""
        with self._changed:
            if not (self._thread or self._is_closing):
                self._thread = threading.Thread(target=self._follow, name="sketches", daemon=True)
                self._thread.start()
            self._asked = mine = self._asked + 1
            self._changed.notify_all()
            is_there = self._changed.wait_for(
                lambda: self._answered >= mine or self._is_closing, seconds
            )
            return 1.0 if is_there else self._share

    def _calls_at(self, offsets: Collection[int]) -> Iterator[StoredCall]:
        with suppress(OSError), open(self._journal, "rb") as lines:
            for offset in offsets:
                lines.seek(offset)
                if call := call_of(lines.readline()):
                    yield call

    def _file(self, *, is_new: bool) -> SketchFile:
        from sglang_cached_addon.store.journal.sketch_file import SketchFile

        return SketchFile(self._path, is_new=is_new)

    # In its own thread

    def _follow(self) -> None:
        while not self._is_closing:
            with self._changed:
                asked = self._asked
            pause: float | None = LOOK_SECONDS
            try:
                self._look()
            except Exception as e:  # who asks reads the journal instead
                logger.debug("%s: %s", self._path, e)
                self._discard(e)
                pause = None
            with self._changed:
                self._answered = asked
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: self._asked > self._answered or self._is_closing, pause
                )

    def _discard(self, why: Exception) -> None:
        """Removes a file that cannot be used; who is next makes it anew."""
        if type(why).__module__ == "sqlite3" and "locked" not in str(why):
            with suppress(OSError):
                remove(self._path.parent)

    def _look(self) -> None:
        """Reads what was added to the journal."""
        from sglang_cached_addon.store.journal.sketch_file import Mark, Overtaken

        with open(self._journal, "rb", buffering=1 << 20) as lines:
            status = os.fstat(lines.fileno())
            now = (status.st_ino, status.st_size)
            if now == self._done and self._path.exists():
                return
            with self._file(is_new=True) as file, suppress(Overtaken):
                mark = file.mark
                if mark.offset > now[1] or mark != _mark(lines, mark.offset):  # another file
                    mark = Mark()
                self._read_on(file, lines, mark, now[1])
                self._done = now

    def _read_on(self, file: SketchFile, lines: IO[bytes], before: Mark, end: int) -> None:
        lines.seek(offset := before.offset)
        from sglang_cached_addon.store.journal.sketch_file import words

        batch, turns = list[tuple[int, str]](), _Turns()
        while offset < end and not self._is_closing:
            line = lines.readline()
            if not line.endswith(b"\n"):
                break  # it is being written
            if call := call_of(line):
                with suppress(*BROKEN):
                    batch.append((offset, words(sketch(call[1], call[2]))))
            offset += len(line)
            if len(batch) >= _BATCH:
                file.add(batch, before, before := _mark(lines, offset))
                batch, self._share = [], offset / end
            turns.look()
        if offset > before.offset or not offset:
            file.add(batch, before, _mark(lines, offset))


def remove(folder: Path) -> None:
    """Removes the file of a folder, as what it says is not true any more; raises OSError."""
    # The file itself at last: what is beside a new one, somebody may be using already.
    for name in ("-shm", "-wal", ""):
        (folder / f"cache.sketches{name}").unlink(missing_ok=True)


class _Turns:
    """Lets other threads have the interpreter now and then: one that computes keeps it for 5 ms
    whenever they want it, which they do several times for each request."""

    def __init__(self) -> None:
        self._end = time.monotonic() + TURN_SECONDS

    def look(self) -> None:
        """Lets others have it, if it is time."""
        if time.monotonic() > self._end:
            time.sleep(0)
            self._end = time.monotonic() + TURN_SECONDS


def likest(calls: Iterable[StoredCall], dialect: str, numbers: frozenset[int]) -> list[StoredCall]:
    """The calls of an API that have most in common with these numbers."""
    turns, same = _Turns(), dict[bytes, StoredCall]()

    def likeness(call: StoredCall) -> int:
        turns.look()
        return len(numbers & sketch(dialect, call[2]))

    for call in calls:
        turns.look()
        if call[1] == dialect:
            same[call[0]] = call
    return heapq.nlargest(CANDIDATES, same.values(), likeness)


def _mark(lines: IO[bytes], offset: int) -> Mark:
    """The mark at an offset, at which the file is then."""
    from sglang_cached_addon.store.journal.sketch_file import Mark

    lines.seek(max(0, offset - 64))
    return Mark(offset, zlib.crc32(lines.read(min(offset, 64))))
