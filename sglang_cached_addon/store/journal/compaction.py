"""When the journal is written anew, and what those who asked for it are told.

It is written anew when somebody asks for it, when a clear has removed some keys, when dead lines
are most of a large file, and when the file has no name any more. At most one `Rewriting` is under
way, while lines are written as ever; what is asked for meanwhile is for the next one. All but `ask`
is for the writer's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal.file import JournalFile, try_to
from sglang_cached_addon.store.journal.guard import Guard
from sglang_cached_addon.store.journal.kept import KeptIndex
from sglang_cached_addon.store.journal.queue import Queue
from sglang_cached_addon.store.journal.rewriting import Rewriting

COMPACT_BYTES = 1 << 20
"""A smaller file is not compacted by itself."""

logger = logging.getLogger(__name__)


class Purpose(Enum):
    """What somebody wants the file to be written anew for; the values are for messages."""

    COMPACT = "compact"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class Wish:
    """Somebody waits for the file to be without the lines that do not count now."""

    done: Future[None]
    purpose: Purpose


class Compaction:
    """Of one journal."""

    def __init__(self, file: JournalFile, queue: Queue, guard: Guard, kept: KeptIndex) -> None:
        self.is_index_whole = True
        """Whether the index knows of all lines where they are."""
        self._file, self._queue, self._guard, self._kept = file, queue, guard, kept
        self._above = COMPACT_BYTES
        """The file is compacted by itself if it has more bytes than this."""
        self._wishes: list[Wish] = []
        """What the next rewriting is to fulfil. Changed under the queue's lock."""
        self._granted: list[Wish] = []
        """What the rewriting that is under way fulfils."""
        self._rewriting: Rewriting | None = None

    def ask(self, purpose: Purpose) -> Future[None]:
        """Has the file written anew, for any thread. The future is done when it is."""
        wish = Wish(Future(), purpose)
        with self._queue.changed:
            self._wishes.append(wish)
            self._queue.changed.notify()
        return wish.done

    @property
    def is_urgent(self) -> bool:
        """Whether `step` has something to do at once. Under the queue's lock."""
        rewriting = self._rewriting
        if rewriting is None:
            return bool(self._wishes)
        return rewriting.is_done or (rewriting.is_ready and not rewriting.is_named)

    def step(self) -> None:
        """Does what is to be done now."""
        rewriting = self._rewriting
        if rewriting is None:
            self._begin()
        elif rewriting.is_done:
            self._end(rewriting)
        elif rewriting.is_ready and not rewriting.is_named:
            try:
                self._name(rewriting)
            except OSError as e:
                rewriting.failure = e
                rewriting.give_up()
                rewriting.join()
                self._end(rewriting)

    def close(self) -> None:
        """Gives up at once, as it would take as long as the file is large."""
        self.give_up()
        with self._queue.changed:
            wishes, self._wishes = self._wishes, []
        tell(wishes, cannot("rewrite", self._file.path, OSError("it ends")))

    def take_clears(self) -> list[Wish]:
        """The wishes for a clear, which come true as the whole file is cleared."""
        with self._queue.changed:
            found = [wish for wish in self._wishes if wish.purpose is Purpose.CLEAR]
            self._wishes = [wish for wish in self._wishes if wish not in found]
        return found

    def _begin(self) -> None:
        # What was queued before a wish is in the file by now, where the disk takes it.
        with self._queue.changed:
            if not (self._wishes or self._guard.is_astray or self._is_mostly_dead):
                return
            self._granted, self._wishes = self._wishes, []
        try:
            self._rewriting = Rewriting(self._file, self._queue)
        except OSError as e:
            self._fail(e)

    @property
    def _is_mostly_dead(self) -> bool:
        size = self._file.size
        return size > self._above and (self._queue.live + self._file.others) * 2 < size

    def _name(self, rewriting: Rewriting) -> None:
        """Puts the copy in the place of the file; raises OSError."""
        rewriting.finish(syncs=self._file.syncs_each_line)
        self._kept.drop()
        reader = self._file.adopt_aside(rewriting.size, rewriting.lines, rewriting.others)
        with self._queue.changed:
            number = self._queue.readers.add(reader)
        rewriting.named(number)
        self._guard.written_anew(self._file.path)
        self._file.sync_in_time()

    def _end(self, rewriting: Rewriting) -> None:
        """It is done, or has failed."""
        if rewriting.is_named:
            with self._queue.changed:
                self._queue.readers.forget_former()
        self._rewriting = None
        if rewriting.failure:
            self._fail(rewriting.failure)
            return
        self._above = COMPACT_BYTES
        granted, self._granted = self._granted, []
        tell(granted, None)

    def _fail(self, why: Exception) -> None:
        try_to(lambda: self._file.aside.unlink(missing_ok=True))
        granted, self._granted = self._granted, []
        path = self._file.path
        if not self._guard.is_astray:
            logger.warning("%s", cannot("compact", path, why))
        elif not self._guard.has_complained:
            self._guard.has_complained = True
            logger.warning("%s", cannot("write anew what was in", path, why))
        for wish in granted:
            tell([wish], cannot(wish.purpose.value, path, why))
        # Not to be tried again with every line.
        self._above = max(COMPACT_BYTES, self._file.size * 5 // 4)
        self._guard.is_astray = False  # until it is seen again

    def give_up(self) -> None:
        """A rewriting that is under way is no more; its wishes are still to be fulfilled."""
        rewriting = self._rewriting
        if rewriting is None:
            return
        rewriting.give_up()
        if rewriting.is_named:  # it has happened, and nobody will ask where the lines have gone
            self.is_index_whole = rewriting.is_done
            rewriting.join()
            self._end(rewriting)
            return
        try_to(lambda: self._file.aside.unlink(missing_ok=True))
        with self._queue.changed:
            self._wishes = self._granted + self._wishes
        self._granted, self._rewriting = [], None


def tell(wishes: Iterable[Wish], failure: Exception | None) -> None:
    """Tells those who wait how it has ended."""
    for wish in wishes:
        settle(wish.done, failure)


def settle(done: Future[None], failure: Exception | None) -> None:
    """Tells one who waits, if it still does."""
    if not done.set_running_or_notify_cancel():
        return
    if failure:
        done.set_exception(failure)
    else:
        done.set_result(None)


def cannot(what: str, path: Path, why: Exception) -> StoreError:
    """What to tell those who wait in vain."""
    reason = why.strerror or why if isinstance(why, OSError) else repr(why)
    return StoreError(f"cannot {what} {path}: {reason}")
