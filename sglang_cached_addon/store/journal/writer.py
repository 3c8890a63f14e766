"""The thread that owns the file: it writes what has gathered, and does whatever else is asked.

A line is written `FLUSH_SECONDS` after it came at the latest, whatever else is going on: nothing
here takes as long as the file is large. While the disk refuses, the lines wait in the queue, and
are tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence

from sglang_cached_addon.store.journal.compaction import (
    Compaction,
    Purpose,
    Wish,
    cannot,
    settle,
    tell,
)
from sglang_cached_addon.store.journal.file import JournalFile, try_to
from sglang_cached_addon.store.journal.guard import Guard
from sglang_cached_addon.store.journal.kept import KeptIndex
from sglang_cached_addon.store.journal.queue import Queue
from sglang_cached_addon.store.journal.waiting import Line

FLUSH_SECONDS = 0.01
"""How long a line may wait for company."""

RETRY_SECONDS = 1.0
"""How long the writer waits between its attempts while the disk refuses."""

LOOK_SECONDS = 1.0
"""How often the writer looks whether the file is where it was."""

logger = logging.getLogger(__name__)


class JournalWriter:
    """Writes one journal, from `start` to `close`."""

    def __init__(
        self,
        file: JournalFile,
        queue: Queue,
        guard: Guard,
        kept: KeptIndex,
        compaction: Compaction,
    ) -> None:
        self.lost = 0
        """Samples that were kept, and could not be written before the end."""
        self.resets = 0
        """How often somebody has cut the file, so that what was read of it may be no more."""
        self._file, self._queue, self._guard, self._kept = file, queue, guard, kept
        self._compaction = compaction
        self._clears: list[Wish] = []
        """Who waits for the whole file to be cleared. Changed under the queue's lock."""
        self._looked_at = 0.0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    # For the event loop

    def start(self) -> None:
        self._looked_at = time.monotonic()
        self._thread.start()

    @property
    def is_started(self) -> bool:
        return self._thread.ident is not None

    def close(self) -> None:
        """Ends when all is written, or when the disk refuses it."""
        if not self.is_started:
            return
        with self._queue.changed:
            self._queue.backlog.is_closing = True
            self._queue.changed.notify()
        self._thread.join()

    def clear(self, wish: Wish) -> None:
        """Has the whole file cleared. Under the queue's lock."""
        self._clears.append(wish)
        self._queue.changed.notify()

    # In its own thread

    def _run(self) -> None:
        while True:
            try:
                if not self._step():
                    return
            except Exception:  # a thread that ended in silence would lose all that follows
                logger.exception("%s: lines lost", self._file.path)

    def _step(self) -> bool:
        """Waits for work and does it; False at the end."""
        self._wait()
        queue = self._queue
        with queue.changed:
            clears, self._clears = self._clears, []
            lines = queue.take()
            is_closing = queue.backlog.is_closing
        if clears:
            self._clear(clears)
        if lines:
            self._append(lines)
        if is_closing or time.monotonic() >= self._looked_at + LOOK_SECONDS:
            self._look()
        if is_closing:
            self._compaction.close()
        else:
            self._compaction.step()
        with queue.changed:
            queue.backlog.settle()
            if not is_closing or self._clears or (queue.count and not queue.backlog.failure):
                return True
            self.lost = queue.lost
        if self.lost:
            logger.warning(
                "%s: %d samples could not be written and are lost: %s",
                self._file.path,
                self.lost,
                queue.backlog.failure and (queue.backlog.failure.strerror or queue.backlog.failure),
            )
        return False

    def _wait(self) -> None:
        """Returns when there is something to do: at the latest when it is time to look."""
        queue = self._queue
        with queue.changed:
            while not self._is_urgent():
                if queue.count and not queue.backlog.failure:
                    queue.changed.wait_for(self._is_urgent, FLUSH_SECONDS)
                    return
                if not queue.changed.wait(RETRY_SECONDS if queue.count else LOOK_SECONDS):
                    return

    def _is_urgent(self) -> bool:
        queue = self._queue
        is_behind = queue.backlog.is_closing or queue.is_behind
        return bool(is_behind or self._clears or self._compaction.is_urgent)

    def _append(self, lines: Sequence[Line]) -> None:
        """Writes lines. If the disk refuses, they wait again."""
        size = sum(len(line.data) for line in lines)
        try:
            offset = self._file.add([line.data for line in lines])
        except OSError as e:
            if self._queue.backlog.failure is None:
                logger.warning("cannot write %s: %s; trying on", self._file.path, e.strerror or e)
            self._queue.refused(e)
            _tell(lines, cannot("write", self._file.path, e))
            return
        if offset < self._file.size:
            self._was_cut(offset)
        keeps_up_again = self._queue.written(lines, offset)
        self._file.added(offset + size, len(lines))
        _tell(lines, None)
        if keeps_up_again:
            logger.warning(
                "%s: the disk keeps up again; %d samples in all were not kept",
                self._file.path,
                self._queue.backlog.dropped,
            )

    def _clear(self, clears: Sequence[Wish]) -> None:
        """Cuts the file to nothing."""
        self._compaction.give_up()
        try:
            self._kept.drop()
            self._file.empty()
        except Exception as e:  # whoever waits for this must be told, whatever it is
            tell(clears, cannot(Purpose.CLEAR.value, self._file.path, e))
            return
        with self._queue.changed:
            self._queue.readers.renumber()
            self._compaction.is_index_whole = True
            also_done = self._compaction.take_clears()
        tell([*clears, *also_done], None)

    def _look(self) -> None:
        """Sees to it that the file is what it was, and where it was."""
        self._looked_at = time.monotonic()
        size = self._file.stat().st_size
        if size < self._file.size:
            self._was_cut(size)
        self._guard.look(self._file)

    def _was_cut(self, size: int) -> None:
        """Somebody has taken away what was in the file behind `size` bytes or before."""
        self._compaction.give_up()
        lost = self._queue.cut()
        self._file.lines = self._file.others = 0
        self._file.size = size
        self.resets += 1
        try_to(self._kept.drop)
        logger.warning(
            "%s: was cut by somebody (logrotate with copytruncate?); %d samples that were in it "
            "are lost. It needs no rotation: see --max-bytes",
            self._file.path,
            lost,
        )


def _tell(lines: Iterable[Line], failure: Exception | None) -> None:
    """Tells those who wait for lines what has become of them."""
    for line in lines:
        if line.done and not line.done.done():
            settle(line.done, failure)
