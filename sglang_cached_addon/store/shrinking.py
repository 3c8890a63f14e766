"""Keeping a folder within its limits: what is too old goes, and what was not used for the longest
time, if there is too much.

Belongs to the event loop. What the limits are, `limits` knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from math import inf

from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.follower import Follower
from sglang_cached_addon.store.limits import Limits, Sweep
from sglang_cached_addon.store.memory import MemoryStore

VICTIMS = 256
"""At most so many entries go at once: callers wait meanwhile."""


class Shrinking:
    """Of one folder. Each method tells whether something may have gone."""

    def __init__(self, memory: MemoryStore, journal: Journal | Follower, limits: Limits) -> None:
        self._memory, self._journal, self._limits = memory, journal, limits
        self._sweep = Sweep()

    def expire(self, key: bytes) -> bool:
        """Lets go of the samples of a pool that have expired, in memory and in the index."""
        if self._limits.ttl == inf:
            return False
        memory, index, now = self._memory, self._journal.index, time.time()
        since = now - self._limits.ttl
        is_gone = memory.expire(key, since, now)
        is_gone |= key not in memory and not index.is_within(key, since, now)
        if is_gone:
            self._journal.expire(key, since, now)
        return is_gone

    def expire_some(self) -> bool:
        """The same for the next few pools."""
        if self._limits.ttl == inf:
            return False
        return sum(map(self.expire, self._sweep.next(self._journal.index))) > 0

    def limit(self, remove: Callable[[bytes], object], most: float = VICTIMS) -> bool:
        """Removes what was not used for the longest time, if there is too much."""
        memory, index = self._memory, self._journal.index
        entries, size = len(index), index.bytes
        if self._limits.allow(entries, size):
            return False
        # What is in memory was used after what is not.
        has_cold = len(memory) < entries
        cold = (key for key in index if key not in memory) if has_cold else ()
        hot = (key for key in memory if key in index)
        victims = self._limits.victims(chain(cold, hot), entries, size, index.weight, most)
        for key in victims:
            memory.remove(key)
            remove(key)
        return True
