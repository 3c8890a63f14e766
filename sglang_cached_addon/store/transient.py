"""A store that ends with the process: pools in memory, of a certain age at most."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import inf
from typing import Any

from sglang_cached_addon.core.cache import Sample, counts
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.journal.loading import Loaded
from sglang_cached_addon.store.memory import MemoryPools


class Nowhere:
    """A `Document` that nobody keeps."""

    is_rejected = False

    def load(self) -> dict[str, Any]:
        return {}

    def reject(self, why: str) -> None:
        pass

    def save(self, document: dict[str, Any]) -> None:
        pass


class MemoryStore(MemoryPools, OpenStore):
    """Pools in memory, as a proxy without a folder has them."""

    journal = None

    def __init__(self, limit: float = inf, ttl: float = inf) -> None:
        """`limit` is the bytes of memory: what does not fit is to be had from a shared server.
        `ttl` is how long a sample is kept, in seconds."""
        super().__init__(limit)
        self.memory = self
        self.state = Nowhere()
        self.loaded = Loaded()
        self._ttl = ttl

    @property
    def index(self) -> MemoryPools:
        return self

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def now(self) -> float:
        return time.time()

    def is_expired(self, stored_at: float) -> bool:
        return self.ttl < inf and not counts(stored_at, (now := self.now) - self.ttl, now)

    def get(self, key: bytes) -> Sequence[Sample]:
        if self.ttl < inf:
            self.expire(key, (now := self.now) - self.ttl, now)
        return super().get(key)

    def remove(self, key: bytes) -> None:
        self.discard(key)
