"""How much waits for the disk, whether the disk takes it, and who waits for that to be less.

Pure. Not safe for threads: `queue` has a lock for it.
"""

from __future__ import annotations

from concurrent.futures import Future

from sglang_cached_addon.store.journal.waiting import Waiting

MAX_PENDING = 64 << 20
"""Bytes of lines that may wait for the disk."""

ROOM = 4 << 20
"""A caller that has much to store waits while more bytes than this wait for a disk that works."""


class Backlog:
    """Of one journal."""

    def __init__(self, waiting: Waiting) -> None:
        self.dropped = 0
        """Samples that were not kept, because too much was waiting for the disk."""
        self.errors = 0
        """How often the disk refused what was written."""
        self.failure: OSError | None = None
        """Why the disk refused what was written last; None if it took it."""
        self.is_closing = False
        """Whether the writer is to end."""
        self._waiting = waiting
        self._is_dropping = False
        self._callers: list[Future[None]] = []

    def fits(self, size: int) -> bool:
        """Whether so many bytes more may wait."""
        return self._waiting.size + size <= MAX_PENDING

    def drop(self, samples: int) -> bool:
        """Notes that samples are not kept; whether all were before."""
        self.dropped += samples
        was_dropping, self._is_dropping = self._is_dropping, True
        return not was_dropping

    def refused(self, why: OSError) -> None:
        """Notes that the disk has taken nothing."""
        self.failure = why
        self.errors += 1

    def taken(self) -> bool:
        """Notes that the disk has taken lines; whether some were dropped before."""
        was_dropping, self._is_dropping = self._is_dropping, False
        self.failure = None
        return was_dropping

    @property
    def _is_worth_waiting_for(self) -> bool:
        return self._waiting.size > ROOM and not self.failure and not self.is_closing

    def wait(self) -> Future[None] | None:
        """A future that is done when there is room for more; None if there is room, or if the disk
        refuses, so that waiting would be for nothing."""
        if not self._is_worth_waiting_for:
            return None
        room: Future[None] = Future()
        self._callers.append(room)
        return room

    def settle(self) -> None:
        """Lets those go on who wait for room, if there is some by now."""
        if self._is_worth_waiting_for:
            return
        for caller in self._callers:
            if caller.set_running_or_notify_cancel():
                caller.set_result(None)
        self._callers.clear()
