"""The lines that wait for the disk, in their order.

Pure, but for the clock. Knows neither the index nor the disk. Not safe for threads: `queue` has a
lock for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import accumulate, islice, takewhile
from typing import NamedTuple

from sglang_cached_addon.store.journal.extents import PENDING, Head, Place


class Line(NamedTuple):
    """A line that waits to be written."""

    head: Head
    data: bytes
    place: Place
    """Stands for the line in the index until it is in the file."""
    since: float
    """When it came: monotonic, in seconds."""
    done: Future[None] | None = None
    """Done when the line is in the file; fails when the disk refuses it, which is tried on."""


class Waiting:
    """The lines of one journal that are not in its file."""

    def __init__(self) -> None:
        self.size = 0
        """The bytes of all of them."""
        self._serial = 0
        """The number of lines that ever waited."""
        self._lines: dict[int, Line] = {}
        """By the offsets that stand for them."""

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Line]:
        return iter(self._lines.values())

    def __getitem__(self, place: Place) -> Line:
        return self._lines[place.offset]

    @property
    def last(self) -> int:
        """The offset that stands, or stood, for the line that came last."""
        return PENDING + self._serial

    def add(self, head: Head, data: bytes, done: Future[None] | None = None) -> Place:
        """Adds a line; returns what stands for it."""
        self._serial += 1
        place = Place(self.last, len(data))
        self._lines[place.offset] = Line(head, data, place, time.monotonic(), done)
        self.size += len(data)
        return place

    def forget(self, line: Line) -> None:
        """A line waits no more, if it does."""
        if self._lines.pop(line.place.offset, None):
            self.size -= len(line.data)

    def drop(self, is_dropped: Callable[[Line], object]) -> None:
        """Forgets lines, but for those that somebody waits for."""
        for line in [line for line in self if not line.done and is_dropped(line)]:
            self.forget(line)

    def first(self, size: int) -> list[Line]:
        """The first lines: no more than reach that many bytes."""
        sizes = accumulate(len(line.data) for line in self)
        count = 1 + sum(1 for _ in takewhile(lambda total: total < size, sizes))
        return list(islice(self, count))

    @property
    def lag(self) -> float:
        """For how many seconds the oldest line has waited; 0 where none waits."""
        first = next(iter(self), None)
        return time.monotonic() - first.since if first else 0.0
