"""Syncs a file in a thread of its own, so that a slow disk holds up no line.

What is written is on the disk `SYNC_SECONDS` later, plus the time that the disk takes. Knows no
lines.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

SYNC_SECONDS = 0.5
"""How long a write may wait for others to be synced with it: half of the second that is promised,
as the disk takes its time as well."""

logger = logging.getLogger(__name__)


class Syncer:
    """Syncs one file, which another one may replace."""

    def __init__(self, path: Path, seconds: float = SYNC_SECONDS) -> None:
        """The path is for messages; a write waits so many seconds for others."""
        self._path, self._seconds = path, seconds
        self._changed = threading.Condition()
        self._handle: int | None = None
        """A duplicate of the file's descriptor; None if there is nothing to be synced."""
        self._due = 0.0
        self._closing = False
        self._cannot = False
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._thread.start()

    def note(self, handle: int) -> None:
        """Notes that something was written to the file with this descriptor. If it is another file
        than before, the former one is of no use any more."""
        try:
            copy = os.dup(handle)
        except OSError as e:  # no more files may be open: the next may come to more
            logger.debug("%s: %s", self._path, e)
            return
        with self._changed:
            before, self._handle = self._handle, copy
            if before is None:
                self._due = time.monotonic() + self._seconds
                self._changed.notify()
        if before is not None:
            os.close(before)

    def close(self) -> None:
        """Ends, without syncing the last writes. May be called twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # In the thread

    def _run(self) -> None:
        while (handle := self._next()) is not None:
            try:
                if not self._closing:
                    self._sync(handle)
            finally:
                os.close(handle)

    def _next(self) -> int | None:
        """Waits until a sync is due, and returns the descriptor; None at the end."""
        with self._changed:
            while not self._closing:
                if self._handle is None:
                    self._changed.wait()
                elif (left := self._due - time.monotonic()) > 0:
                    self._changed.wait(left)
                else:
                    break
            handle, self._handle = self._handle, None
            return handle

    def _sync(self, handle: int) -> None:
        try:
            os.fsync(handle)
            self._cannot = False
        except OSError as e:
            if not self._cannot:
                logger.warning("cannot sync %s: %s; trying on", self._path, e.strerror)
            self._cannot = True
            with self._changed:
                is_newer = self._handle is not None
            if not is_newer:
                self.note(handle)
