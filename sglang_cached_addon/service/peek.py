"""What is stored for one call, as it is now: to be looked at without being used.

A store like others to who plans a call, but nothing of it is changed: no pool counts as used, none
is read into memory, and nothing can be added.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from math import inf

from sglang_cached_addon.core.cache import Addition, Brought, Sample, Store
from sglang_cached_addon.core.places import pool_of
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store.contract import OpenStore


class Peek(Store):
    """The pools that were brought."""

    generation = 0

    def __init__(self, store: OpenStore) -> None:
        self._store = store
        self._pools: dict[bytes, Sequence[Sample]] = {}

    @property
    def clears(self) -> int:
        return self._store.clears

    def cleared(self, keys: Iterable[bytes]) -> int:
        return self._store.cleared(keys)

    @property
    def now(self) -> float:
        return self._store.now

    def is_expired(self, stored_at: float) -> bool:
        return self._store.is_expired(stored_at)

    def get(self, key: bytes) -> Sequence[Sample]:
        return self._pools.get(key, ())

    def size(self, key: bytes) -> float:
        return len(self.get(key))

    def bring(self, needs: Mapping[bytes, int], *, claims: bool = False) -> Awaitable[Brought]:
        return self._bring([key for key in needs if key not in self._pools])

    async def _bring(self, keys: Collection[bytes]) -> Brought:
        self._pools |= await self._store.look(keys)
        return Brought()

    def draw(self, key: bytes, run: Run) -> None:
        """Leaves only the samples of a pool that the next call of a run may have."""
        samples, pool = self.get(key), pool_of(key)
        begin = 0
        if run.fresh_since > -inf and not run.places.has_floor(pool):
            old = (k for k, one in enumerate(samples, 1) if one.stored_at < run.fresh_since)
            begin = max(old, default=0)
        free = run.places.free(pool, len(samples))
        self._pools[key] = [samples[place] for place in free if place >= begin]

    # What would change something

    def touch(self, keys: Sequence[bytes]) -> None:
        """Nothing is noted."""

    def find(self, raw: bytes) -> bytes | None:
        return None

    def append(self, addition: Addition) -> bool:
        return False

    def room(self) -> None:
        """Nothing is added."""

    def has_room(self, size: int) -> bool:
        return False
