"""The journal of a folder that another process owns: read, and followed as it grows.

A thread looks at the file every `LOOK_SECONDS`, and adds to the index what was added to the file.
Where the owner has put another file in its place, or cut it, all is read anew, and until that is
done nothing is found. Writes nothing, and takes no lock.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal.extents import FILE, Extent, Place
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.kept import read as read_kept
from sglang_cached_addon.store.journal.lines import BROKEN, OtherVersion, samples_of, scan
from sglang_cached_addon.store.journal.loading import PROGRESS_LINES, Loaded
from sglang_cached_addon.store.journal.reader import FileReader
from sglang_cached_addon.store.snapshot import keys_of

LOOK_SECONDS = 0.5
"""How often the thread looks at the file."""

logger = logging.getLogger(__name__)


class Follower:
    """Reads the journal of one folder. Has all that `Journal` has for a store."""

    pending = dropped = errors = lost = 0
    lag = 0.0

    def __init__(self, folder: Path) -> None:
        """Raises `StoreError` if there is no cache."""
        self.path = folder / "cache.jsonl"
        self.resets = 0
        """Rises when the file is another one: what was read of it may be no more."""
        self.index = Index()
        self._lock = threading.Lock()
        self._news: deque[bytes] = deque()
        self._lines = self._end = self._first = 0
        """How many lines, and bytes, the index is of, and at which offset the file begins there."""
        self._skipped = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._reader = FileReader(self.path)
        except OSError as e:
            raise StoreError(
                f"cannot read {self.path}: {e.strerror}; --readonly is for the folder of another "
                "process, which --cache-path names"
            ) from e

    def load(self, progress: Callable[[float], object] = lambda share: None) -> Loaded:
        """As `Journal.load`."""
        try:
            self._look(progress)
        except OSError as e:
            raise StoreError(f"cannot read {self.path}: {e.strerror}") from e
        self._news.clear()
        progress(1.0)
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._thread.start()
        return Loaded(self.index.entries, self.index.samples, self._skipped)

    # On the event loop

    def read(self, key: bytes, *, waits: bool) -> list[Sample] | None:
        """As `Journal.read`."""
        with self._lock:
            extents, reader = self.index.extents(key), self._reader
        samples: list[Sample] = []
        try:
            for extent in extents:
                line = reader.read(extent.place.offset % FILE, extent.place.length, waits=waits)
                if line is None:
                    return None
                samples += samples_of(line, key)[extent.skip : extent.skip + extent.samples]
        except (OtherVersion, OSError, *BROKEN) as e:
            # It may be cut just now; what is broken is for its owner to report.
            logger.debug("%s: %s", self.path, e)
            return []
        return samples

    def lines(self, key: bytes) -> list[tuple[Extent, bytes]]:
        """As `Journal.lines`."""
        with self._lock:
            extents, reader = self.index.extents(key), self._reader
        places = [extent.place for extent in extents]
        found = [reader.read(p.offset % FILE, p.length, waits=True) or b"" for p in places]
        return list(zip(extents, found, strict=True))

    def extents(self, key: bytes) -> list[Extent]:
        """As `Journal.extents`."""
        with self._lock:
            return self.index.extents(key)

    def keys(self) -> list[bytes]:
        """As `Journal.keys`."""
        return keys_of(lambda: iter(self.index), self._lock)

    def waiting(self) -> list[tuple[int, bytes]]:
        """Whatever is there is in the file."""
        return []

    def news(self) -> Iterator[bytes]:
        """The keys to which samples were added since this was called last."""
        while self._news:
            yield self._news.popleft()

    def before_restoring(self, action: Callable[[], object]) -> None:
        """Nothing is restored."""

    def announce(self, url: str) -> None:
        """The folder is another process's."""

    def touch(self, key: bytes) -> None:
        with self._lock:
            self.index.touch(key)

    def expire(self, key: bytes, since: float, now: float) -> None:
        """As `Journal.expire`."""
        with self._lock:
            self.index.expire(key, since, now)

    def append(self, line: Addition, slot: int = 0) -> bool:
        """Nothing is stored."""
        return True

    def room(self) -> None:
        """As `Journal.room`."""

    def has_room(self, size: int) -> bool:
        """Nothing is stored."""
        return True

    def remove(self, key: bytes) -> None:
        """Nothing is removed."""

    def forget(self, key: bytes) -> None:
        """Nothing is removed."""

    def clear(self) -> Future[None]:
        return self._refused("clear")

    def delete(self, key: bytes) -> Future[None]:
        return self._refused("delete from")

    def compact(self) -> Future[None]:
        return self._refused("compact")

    def _refused(self, what: str) -> Future[None]:
        done: Future[None] = Future()
        done.set_exception(
            StoreError(f"cannot {what} {self.path}: opened with --readonly; ask its owner")
        )
        return done

    def close(self) -> None:
        self._closing.set()
        if self._thread:
            self._thread.join()

    # In the thread

    def _follow(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            try:
                self._look(lambda share: None)
            except OSError as e:  # it may be back
                logger.debug("%s: %s", self.path, e)

    def _look(self, progress: Callable[[float], object]) -> None:
        now = self.path.stat()
        if not self._reader.is_same(now) or now.st_size < self._end:
            reader = FileReader(self.path)
            with self._lock:
                self.index, self._reader = Index(), reader
                self._lines = self._end = self._first = 0
                self.resets += 1
        if now.st_size and not self._end:
            self._take_kept()
        if now.st_size > self._end:
            self._read_on(now.st_size, progress)

    def _take_kept(self) -> None:
        """Begins with the index that the owner has kept, if that is of the file that is read."""
        kept = read_kept(self.path)
        if kept and self._reader.is_same(self.path.stat()):
            with self._lock:
                self.index, self._first = kept.index, kept.number * FILE
                self._lines, self._end = kept.lines, kept.bytes

    def _read_on(self, size: int, progress: Callable[[float], object]) -> None:
        with open(self.path, "rb", buffering=1 << 20) as lines:
            if not self._reader.is_same(os.fstat(lines.fileno())):
                return  # in a moment
            lines.seek(self._end)
            for line in lines:
                if not line.endswith(b"\n") or self._closing.is_set():
                    return  # it is being written
                place = Place(self._first + self._end, len(line))
                self._end += len(line)
                self._lines += 1
                if self._lines % PROGRESS_LINES == 0:
                    progress(min(1.0, self._end / size))
                try:
                    head = scan(line)
                except (OtherVersion, *BROKEN):
                    self._skipped += 1
                    continue
                with self._lock:
                    self.index.add(head, place)
                self._news.append(head.key)
