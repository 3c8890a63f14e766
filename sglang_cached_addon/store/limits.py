"""How much a store keeps, and what goes when there is more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path

Key = bytes

STEP = 128
"""What has grown beyond a limit is cut by this part of the limit, so that it is not done with each
line; small limits are kept to the letter."""


SWEEP = 64
"""Entries that are looked at for expired samples whenever samples are stored."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept, and for how long."""

    entries: float = inf
    """The number of keys."""
    bytes: float = inf
    """The bytes of the journal's lines that count."""
    ttl: float = inf
    """How long a sample is kept, in seconds."""
    memory: float = inf
    """The bytes of samples in memory."""

    def allow(self, entries: int, size: int) -> bool:
        """Whether so many keys and bytes may stay."""
        return entries <= self.entries and size <= self.bytes

    def victims(
        self,
        keys: Iterable[Key],
        entries: int,
        size: int,
        weight: Callable[[Key], int],
        most: float = inf,
    ) -> list[Key]:
        """The first of the keys that have to go, at most so many at once, where there are `entries`
        keys of `size` bytes; `weight` tells the bytes of one."""
        least_entries, least_bytes = _below(self.entries), _below(self.bytes)
        found: list[Key] = []
        for key in keys:
            if (entries <= least_entries and size <= least_bytes) or len(found) >= most:
                break
            found.append(key)
            entries -= 1
            size -= weight(key)
        return found


NO_LIMITS = Limits()


class Sweep:
    """Goes through the keys of an index, a few at a time, for ever. Keys come and go meanwhile, so
    that some may be met twice in a round, and some not before the next one."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        """The keys that come next."""
        self._met = 0
        """How many keys of the index, from its beginning on, were met in this round."""

    def next(self, index: Iterable[Key]) -> list[Key]:
        """The next few keys."""
        if not self._keys:
            self._keys = list(islice(index, self._met, self._met + SWEEP * SWEEP))
            self._met = self._met + len(self._keys) if self._keys else 0
        few, self._keys = self._keys[-SWEEP:], self._keys[:-SWEEP]
        return few


def machine_memory() -> float:
    """The bytes that this process may count on: the machine's, or its container's."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        found = min(found, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def _below(limit: float) -> float:
    """How much is left of what has grown beyond a limit."""
    return limit if limit == inf else limit - limit // STEP
