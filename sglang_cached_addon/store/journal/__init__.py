"""The journal: `cache.jsonl`, to which lines are added, and the index of what is in it.

This class is what the event loop sees; nothing here waits for the disk but `load`, `close`, and a
`read` that may. One thread, the `writer`, owns the file. Lines wait for it in the `queue`, together
with the `index`; what a line says is in `lines`. `compaction` takes out the lines that do not count
any more, by `rewriting` the file while lines are added; `guard` holds the folder's lock and puts
right what others do to the file; `kept` keeps the index of a large file; `loading` reads a file at
open, and `verify` checks one. A `follower` reads the journal of another process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store.clearing import IsCleared, let_go
from sglang_cached_addon.store.files import CHOOSE_ANOTHER, StoreError, close_to_others
from sglang_cached_addon.store.journal.compaction import Compaction, Purpose, Wish
from sglang_cached_addon.store.journal.extents import Head
from sglang_cached_addon.store.journal.file import JournalFile
from sglang_cached_addon.store.journal.guard import Guard
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.kept import KeptIndex
from sglang_cached_addon.store.journal.lines import encode
from sglang_cached_addon.store.journal.loading import Loaded, load
from sglang_cached_addon.store.journal.pools import PoolReader
from sglang_cached_addon.store.journal.queue import Queue
from sglang_cached_addon.store.journal.reader import FileReader
from sglang_cached_addon.store.journal.writer import JournalWriter

logger = logging.getLogger(__name__)


class Journal:
    """The journal of one folder, which no other process has meanwhile."""

    def __init__(self, folder: Path, fsync: Fsync = Fsync.INTERVAL) -> None:
        """Takes the folder, and makes it if it is missing; raises `StoreError`."""
        self.path = folder / "cache.jsonl"
        self._guard = Guard(folder)
        try:
            close_to_others(folder)
            self._file = JournalFile(folder, fsync)
            self._queue = Queue(self.path, FileReader(self.path))
        except OSError as e:
            self._guard.close()
            name = e.filename or self.path
            raise StoreError(f"cannot write {name}: {e.strerror}; {CHOOSE_ANOTHER}") from e
        self.room, self.has_room = self._queue.room, self._queue.has_room
        reading = PoolReader(self.path, self._queue)
        self.read, self.lines = reading.read, reading.lines
        self.keys, self.extents = self._queue.keys, self._queue.extents
        self.announce = self._guard.announce
        self._kept = KeptIndex(self.path)
        self._compaction = Compaction(self._file, self._queue, self._guard, self._kept)
        self._writer = JournalWriter(
            self._file, self._queue, self._guard, self._kept, self._compaction
        )

    # What is there

    @property
    def index(self) -> Index:
        """The index of all lines that are in the file or wait for it. Only the event loop may read
        it without a lock."""
        return self._queue.index

    @property
    def resets(self) -> int:
        """Rises when somebody has cut the file: what was read of it may be no more."""
        return self._writer.resets

    @property
    def pending(self) -> int:
        """The number of lines that are not yet written."""
        return self._queue.count

    @property
    def lag(self) -> float:
        """For how many seconds the oldest of them has waited; 0 where none waits."""
        return self._queue.lag

    @property
    def dropped(self) -> int:
        """The number of samples that were not kept, because too much was waiting for the disk."""
        return self._queue.backlog.dropped

    @property
    def errors(self) -> int:
        """How often the disk refused what was written."""
        return self._queue.backlog.errors

    @property
    def lost(self) -> int:
        """The number of samples that were kept, and could not be written before the end."""
        return self._writer.lost

    def before_restoring(self, action: Callable[[], object]) -> None:
        """Has `action` called before a file is put back that was removed."""
        self._guard.before_restoring = action

    def waiting(self) -> list[tuple[int, bytes]]:
        """The lines that are not yet in the file, in their order, each with a number that rises;
        for any thread."""
        return [(line.place.offset, line.data) for line in self._queue.waiting()]

    def news(self) -> Sequence[bytes]:
        """The keys to which others have added something."""
        return ()

    # What is to be there

    def append(self, line: Addition, slot: int = 0) -> bool:
        """Queues one line with samples for the slots of a key's pool that begin at `slot`; without
        samples, a line that removes them all. False if too much is waiting already: the line is not
        kept, then."""
        at = line.samples[0].stored_at if line.samples else 0.0
        head = Head(line.key, line.raw, slot, line.dialect, at, len(line.samples))
        return self._queue.add(head, encode(line, slot))

    def touch(self, key: bytes) -> None:
        """Notes that a key was used just now."""
        with self._queue.changed:
            self.index.touch(key)

    def expire(self, key: bytes, since: float, now: float) -> None:
        """Forgets the samples that do not count. Whoever opens the file again has to do the
        same."""
        with self._queue.changed:
            self.index.expire(key, since, now)

    def forget(self, key: bytes) -> None:
        """Removes all samples of a key, until the file is opened again without having been
        compacted."""
        with self._queue.changed:
            self.index.remove(key)

    def remove(self, key: bytes) -> None:
        """Queues a line that says that all samples of a key are gone."""
        if not self.append(Addition(key, "", b"", ())):
            self.forget(key)

    def delete(self, key: bytes) -> Future[None]:
        """Removes a key for good. The future is done when the file says so; its text is in the file
        until that is compacted."""
        return self._queue.delete(key, encode(Addition(key, "", b"", ())))

    def compact(self) -> Future[None]:
        """Begins to write the file anew without dead and broken lines. What was queued before is
        in it, where the disk takes it."""
        return self._compaction.ask(Purpose.COMPACT)

    def clear(self) -> Future[None]:
        """Removes all lines: at once from the index and from what waits, and in its turn from the
        file. The future is done then."""
        with self._queue.changed:
            let_go(*self.index.clear())
            self._queue.drop(lambda line: True)
            wish = Wish(Future(), Purpose.CLEAR)
            self._writer.clear(wish)
        return wish.done

    @property
    def mark(self) -> int:
        """Tells lines that were queued before now from those that come later."""
        return self._queue.mark

    def purge(self, before: int, is_cleared: IsCleared) -> Future[None]:
        """Rids the file of keys that were forgotten: `before` is the `mark` of then, and what was
        queued later stays. The future is done when that has happened."""
        with self._queue.changed:
            self._queue.drop(lambda ln: ln.place.offset <= before and is_cleared(ln.head.key))
            return self._compaction.ask(Purpose.CLEAR)

    # Before serving, and after

    def load(self, progress: Callable[[float], object] = lambda share: None) -> Loaded:
        """Reads what is there into the index, then starts the writer. `progress` is told what share
        is read, now and then. Raises `StoreError` where the disk fails; a broken line is no such
        failure."""
        try:
            loaded = load(self._file, self._queue, self._kept, progress)
            self._keep_index()
        except OSError as e:
            raise StoreError(f"cannot read {self.path}: {e.strerror}; {CHOOSE_ANOTHER}") from e
        if loaded.old:
            self.compact()
        self._writer.start()
        return loaded

    def close(self) -> None:
        """Writes what waits, syncs, and frees the folder; `lost` says what could not be written. A
        compaction is given up, as it would take as long as the file is large. May be called
        twice."""
        if self._file.is_closed:
            return
        self._writer.close()
        self._file.finish()
        if self._writer.is_started and self._compaction.is_index_whole:
            with suppress(OSError):
                self._keep_index()
        self._file.close()
        self._guard.close()

    def _keep_index(self) -> None:
        if not self.pending:
            self._kept.keep(self.index, self._file, self._queue.readers.newest)
