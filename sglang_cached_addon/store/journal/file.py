"""`cache.jsonl`, open to be added to: whole lines, and when they are made to outlive a power cut.

Belongs to the writer. What others do to the file is for `guard`, and what a line says for `lines`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store.files import private
from sglang_cached_addon.store.journal.reader import FileReader
from sglang_cached_addon.store.journal.syncer import Syncer

logger = logging.getLogger(__name__)


class JournalFile:
    """The file of one folder."""

    def __init__(self, folder: Path, fsync: Fsync) -> None:
        """Raises OSError."""
        self.path = folder / "cache.jsonl"
        self.aside = folder / "cache.jsonl.new"
        """Another file that is to take the place of this one."""
        self.lines = 0
        """The number of lines in the file."""
        self.others = 0
        """The bytes of the lines that are of later format versions."""
        self.syncs_each_line = fsync is Fsync.ALWAYS
        self._cannot_sync = False
        self.aside.unlink(missing_ok=True)  # left by a process that was killed
        self._file = self._open()
        self._syncer = Syncer(self.path) if fsync is Fsync.INTERVAL else None

    def _open(self) -> FileIO:
        file = open(self.path, "ab", buffering=0, opener=private)  # noqa: SIM115
        self.size = os.fstat(file.fileno()).st_size
        """The bytes of the file that the index knows."""
        return file

    def reopen(self) -> None:
        """Opens the file that has the name now, or a new one; raises OSError."""
        self._file.close()
        self._file = self._open()

    def stat(self) -> os.stat_result:
        return os.fstat(self._file.fileno())

    @property
    def handle(self) -> int:
        return self._file.fileno()

    @property
    def is_closed(self) -> bool:
        return self._file.closed

    def add(self, lines: Sequence[bytes]) -> int:
        """Writes lines as one piece, and returns its offset. Raises OSError if the disk refuses;
        then none of them is in the file."""
        data = memoryview(b"".join(lines))
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
            end = self._file.tell()
        except OSError:
            if written:
                try_to(lambda: self._file.truncate(self.size))
            raise
        return end - len(data)

    def added(self, end: int, count: int) -> None:
        """Notes that the file ends there, with so many lines more, and sees to it that they are
        synced in their time."""
        self.size = end
        self.lines += count
        self.sync_in_time()

    def sync_in_time(self) -> None:
        """Has what was written synced when `fsync` says so."""
        if self._syncer:
            self._syncer.note(self.handle)
        elif self.syncs_each_line:
            self.sync()

    def sync(self) -> None:
        """Returns when the disk has all; one that fails is logged once."""
        try:
            os.fsync(self.handle)
            self._cannot_sync = False
        except OSError as e:
            if not self._cannot_sync:
                logger.warning("cannot sync %s: %s; trying on", self.path, e.strerror)
            self._cannot_sync = True

    def empty(self) -> None:
        """Cuts the file to nothing: one operation, so that there is no half of it. Raises
        OSError."""
        self._file.truncate(0)
        os.fsync(self.handle)
        self.lines = self.others = self.size = 0

    def adopt_aside(self, size: int, lines: int, others: int) -> FileReader:
        """Gives the file aside the name of this one, and returns who reads it. Raises OSError, and
        then nothing has changed."""
        # Opened before it has the name: behind the renaming nothing may fail that would leave us
        # with a file that is gone.
        file = open(self.aside, "ab", buffering=0, opener=private)  # noqa: SIM115
        try:
            reader = FileReader(self.aside)
            self.aside.replace(self.path)
        except BaseException:
            file.close()
            raise
        self._file, old = file, self._file
        old.close()
        self.size, self.lines, self.others = size, lines, others
        return reader

    def finish(self) -> None:
        """Makes all that was written outlive a power cut; nothing is written after that."""
        if self._syncer:
            self._syncer.close()
        self.sync()

    def close(self) -> None:
        self._file.close()


def try_to(action: Callable[[], object]) -> None:
    """Does what is good to do, and no matter if the disk refuses it."""
    try:
        action()
    except OSError as e:
        logger.debug("%s", e)
