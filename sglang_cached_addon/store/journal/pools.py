"""Reading pools of a journal: their lines are in the file, or wait for it.

For any thread. Where the lines are, `queue` knows, and what they say `lines`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.store.journal.extents import FILE, Extent, Place
from sglang_cached_addon.store.journal.lines import BROKEN, OtherVersion, samples_of
from sglang_cached_addon.store.journal.queue import Queue

logger = logging.getLogger(__name__)


class PoolReader:
    """Of one journal."""

    def __init__(self, path: Path, queue: Queue) -> None:
        self._path, self._queue = path, queue
        self._cannot_read = False

    def read(self, key: bytes, *, waits: bool) -> list[Sample] | None:
        """The samples of a key; None if the disk would have to be waited for and is not to be, or
        if it fails. A broken line is logged, and not found any more."""
        samples: list[Sample] = []
        for extent, line, reader in self._queue.find(key):
            try:
                if reader:
                    line = reader.read(extent.place.offset % FILE, extent.place.length, waits=waits)
                if line is None:
                    return None
                samples += samples_of(line, key)[extent.skip : extent.skip + extent.samples]
            except OSError as e:
                if not self._cannot_read:  # each look would say it again
                    logger.warning("cannot read %s: %s", self._path, e.strerror)
                self._cannot_read = True
                return None
            except (OtherVersion, *BROKEN) as e:
                self._lose(key, extent.place, e)
        return samples

    def _lose(self, key: bytes, place: Place, why: Exception) -> None:
        if self._queue.lose(key, place):
            at = place.offset % FILE  # nobody has counted which line it is
            logger.warning("%s: the line at byte %d is not used: %s", self._path, at, why)

    def lines(self, key: bytes) -> list[tuple[Extent, bytes]]:
        """The extents of a key, each with its line as it is read now, for any thread; raises
        OSError."""
        found = []
        for extent, line, reader in self._queue.find(key):
            if reader:
                line = reader.read(extent.place.offset % FILE, extent.place.length, waits=True)
            found.append((extent, line or b""))
        return found
