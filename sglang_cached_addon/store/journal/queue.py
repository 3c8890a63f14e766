"""The lines that wait for the disk, and the index of all lines, under one lock.

The event loop adds lines and looks up where others are; the writer takes lines, and says where in
the file they have come to be. How much may wait, `backlog` knows. Touches no disk, and does not
know what a line says but for its head.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from sglang_cached_addon.store.journal.backlog import Backlog
from sglang_cached_addon.store.journal.extents import FILE, PENDING, Extent, Head, Place
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.reader import FileReader, FileReaders
from sglang_cached_addon.store.journal.waiting import Line, Waiting
from sglang_cached_addon.store.snapshot import keys_of

BATCH = 1 << 20
"""Bytes of lines that are written in one go."""

SLICE = 64
"""Entries that are changed in one go: the event loop wants the lock, too."""

logger = logging.getLogger(__name__)

Move = tuple[bytes, int, int, int, Place]
"""A key, the offset, slot and number of samples of a line that was copied, and where they are."""


class Queue:
    """Belongs to the event loop and to the writer. `changed` is the lock for all of it."""

    def __init__(self, path: Path, reader: FileReader) -> None:
        """`path` is for messages; `reader` reads the file whose number is 0."""
        self.changed = threading.Condition()
        """The lock, which also tells the writer that there is something to do."""
        self.index = Index()
        """All lines that are in the file or wait for it."""
        self.readers = FileReaders(reader)
        """Who reads the files in which lines are. Changed under the lock."""
        self._path = path
        self._waiting = Waiting()
        """The lines that are not in the file."""
        self.backlog = Backlog(self._waiting)
        """What of them is too much. Changed under the lock."""

    # For the event loop

    @property
    def count(self) -> int:
        """The number of lines that are not in the file."""
        return len(self._waiting)

    @property
    def size(self) -> int:
        """The bytes of those lines."""
        return self._waiting.size

    @property
    def lag(self) -> float:
        """For how many seconds the oldest line has waited; 0 where none waits."""
        with self.changed:
            return self._waiting.lag

    @property
    def mark(self) -> int:
        """The offset that stands, or stood, for the line that came last."""
        return self._waiting.last

    def add(self, head: Head, data: bytes) -> bool:
        """Adds a line; False if too much is waiting already: the line is not kept, then."""
        with self.changed:
            if self.backlog.fits(len(data)):
                self.index.add(head, self._waiting.add(head, data))
                if len(self._waiting) == 1:
                    self.changed.notify()
                return True
            is_first = self.backlog.drop(head.samples)
        if is_first:
            logger.warning(
                "%s: the disk does not keep up; answers are not kept until it does", self._path
            )
        return False

    def delete(self, key: bytes, data: bytes) -> Future[None]:
        """Removes a pool, with what waits of it; `data` is the line that says so, which is kept
        however much waits."""
        done: Future[None] = Future()
        with self.changed:
            self.index.remove(key)
            self.drop(lambda line: line.head.key == key)
            self._waiting.add(Head(key, b"", 0, "", 0.0, 0), data, done)
            self.changed.notify()
        return done

    def room(self) -> Future[None] | None:
        """As `Backlog.wait`."""
        with self.changed:
            return self.backlog.wait()

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be kept. A disk that refuses is not counted on."""
        return self.backlog.failure is None or self.backlog.fits(size)

    def find(self, key: bytes) -> list[tuple[Extent, bytes | None, FileReader | None]]:
        """The extents of a pool, each with its line if that waits, or with who reads it."""
        with self.changed:
            return [
                (extent, self._waiting[extent.place].data, None)
                if extent.place.offset >= PENDING
                else (extent, None, self.readers.of(extent.place))
                for extent in self.index.extents(key)
            ]

    def waiting(self) -> list[Line]:
        """The lines that are not in the file, in their order."""
        with self.changed:
            return list(self._waiting)

    def extents(self, key: bytes) -> list[Extent]:
        """As `Index.extents`, from any thread."""
        with self.changed:
            return self.index.extents(key)

    def keys(self) -> list[bytes]:
        """All keys of the index, from any thread."""
        return keys_of(lambda: iter(self.index), self.changed)

    def lose(self, key: bytes, place: Place) -> bool:
        """Forgets a line that cannot be read; False if its samples are elsewhere by now."""
        with self.changed:
            if is_there := bool(self.index.extents_of(key, place)):
                self.index.lose(key, place)
        return is_there

    def drop(self, is_dropped: Callable[[Line], object]) -> None:
        """Forgets lines, but for those that somebody waits for, though the writer may be writing
        them now. The index is the caller's."""
        self._waiting.drop(is_dropped)

    # For the writer

    def take(self) -> list[Line]:
        """The lines to be written now, in their order: not many more bytes than `BATCH`, as a copy
        of them is made."""
        with self.changed:
            return self._waiting.first(BATCH)

    @property
    def is_behind(self) -> bool:
        """There is a whole batch to be written, and the disk takes it."""
        return self.backlog.failure is None and self._waiting.size >= BATCH

    def written(self, lines: Sequence[Line], offset: int) -> bool:
        """Notes that these lines are in the file, side by side from `offset` on. True if lines had
        to be dropped before, and need not be any more."""
        offset += self.readers.newest * FILE
        for start in range(0, len(lines), SLICE):
            with self.changed:
                for line in lines[start : start + SLICE]:
                    self.index.put(line.head.key, line.place, offset)
                    self._waiting.forget(line)
                    offset += len(line.data)
        with self.changed:
            return self.backlog.taken()

    def refused(self, why: OSError) -> None:
        """Notes that the disk takes no lines. They wait on, but for those whose samples are not in
        the index any more."""
        with self.changed:
            self.backlog.refused(why)
            of = self.index.extents_of
            self.drop(lambda line: line.head.samples and not of(line.head.key, line.place))

    @property
    def lost(self) -> int:
        """The number of samples that wait."""
        return sum(line.head.samples for line in self._waiting)

    @property
    def live(self) -> int:
        """The bytes of the lines in the file that count."""
        with self.changed:
            return self.index.bytes - self._waiting.size

    def cut(self) -> int:
        """Somebody has cut the file: only the lines that wait are left. Returns the number of
        samples that are lost."""
        with self.changed:
            before, index = self.index.samples, Index()
            for line in self._waiting:
                index.add(line.head, line.place)
            self.index = index
            self.readers.renumber()
            return before - index.samples

    # For compaction

    def extents_of(self, key: bytes, place: Place) -> list[Extent]:
        """As `Index.extents_of`, from any thread."""
        with self.changed:
            return self.index.extents_of(key, place)

    def move(self, moves: Iterable[Move]) -> None:
        """As `Index.move` for each, from any thread."""
        with self.changed:
            for move in moves:
                self.index.move(*move)

    def wake(self) -> None:
        """Tells the writer to look what there is to do."""
        with self.changed:
            self.changed.notify()
