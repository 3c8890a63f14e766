"""What is stored for one call, as it is now: to be looked at without being used.

A store like others to who plans a call, but nothing of it is changed: no pool counts as used, none
is read into memory, and nothing can be added.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence

from sglang_cached_addon.core.cache import Addition, Brought, Sample, Store
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

    def keep(self, key: bytes, samples: Sequence[Sample]) -> None:
        """Leaves only these samples of a pool."""
        self._pools[key] = samples

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
