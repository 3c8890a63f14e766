"""Reading a journal, without changing it: single lines, its calls, and who reads which file.

A reader goes on reading its file when that has got another name, or none. Knows no index.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sglang_cached_addon.store.journal.extents import FILE, FILES, Place
from sglang_cached_addon.store.journal.lines import call_of

logger = logging.getLogger(__name__)


class FileReader:
    """Reads one file, whatever its name is."""

    def __init__(self, path: Path) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, offset: int, length: int, *, waits: bool) -> bytes | None:
        """The bytes at an offset; None if the disk would have to be waited for and is not to be."""
        if waits:
            return os.pread(self._handle, length, offset)
        data = bytearray(length)
        try:
            count = os.preadv(self._handle, [data], offset, os.RWF_NOWAIT)
        except (OSError, AttributeError):  # not in memory, or not known to this system
            return None
        return bytes(data) if count == length else None

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return os.fstat(self._handle).st_size

    def open(self) -> IO[bytes]:
        """The file from its beginning. Not for two at once: they share one position."""
        file = os.fdopen(os.dup(self._handle), "rb", buffering=1 << 20)
        file.seek(0)
        return file

    def is_same(self, other: os.stat_result) -> bool:
        """Whether this reads the file with that status."""
        ours = os.fstat(self._handle)
        return (ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino)


class FileReaders:
    """The readers of the files in which lines are, by the numbers of the files. Lines are added to
    the newest one; there are two while lines are moved from one to the other."""

    def __init__(self, reader: FileReader) -> None:
        self.newest = 0
        """The number of the file that lines are added to."""
        self._by_number = {0: reader}

    @property
    def current(self) -> FileReader:
        """The reader of the newest file."""
        return self._by_number[self.newest]

    def of(self, place: Place) -> FileReader | None:
        """The reader of the file that a place is in; None if that file is no more."""
        return self._by_number.get(place.offset // FILE)

    def renumber(self, number: int | None = None) -> None:
        """Gives the newest file another number, so that no former place is in it."""
        reader = self.current
        self.newest = self._next if number is None else number
        self._by_number = {self.newest: reader}

    def add(self, reader: FileReader) -> int:
        """Lines are added to another file from now on; returns its number."""
        number = self._next
        self._by_number[number] = reader
        self.newest = number
        return number

    def forget_former(self) -> None:
        """No line is in another file than the newest one any more."""
        self._by_number = {self.newest: self.current}

    @property
    def _next(self) -> int:
        return (self.newest + 1) % FILES


def calls_of(
    path: Path, limit: int, seconds: float, newest: int | None = None
) -> Iterator[tuple[bytes, str, bytes]]:
    """The key, dialect and canonical call of the calls in a journal, oldest first: at most `limit`
    of them, and none after so many seconds; of those in the `newest` bytes, where only these are
    wanted. For a thread. A file that cannot be read has none."""
    deadline = time.monotonic() + seconds
    try:
        # Opened anew, so that the writer's position in the file is its own. What a clear removes
        # meanwhile may still be seen.
        with open(path, "rb") as lines:
            if newest is not None:
                end = lines.seek(0, os.SEEK_END)
                lines.seek(max(0, end - newest - 1))
                if end > newest:
                    lines.readline()  # the rest of a line that begins before
            for line in lines:
                if limit <= 0 or time.monotonic() > deadline:
                    return
                if (found := call_of(line)) is not None:
                    limit -= 1
                    yield found
    except OSError as e:
        logger.debug("%s", e)
