"""Pools in memory: key to samples, with the counts that people ask for kept as they change.

No I/O. Not safe for threads: it belongs to the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sglang_cached_addon.cache import Brought, Sample
from sglang_cached_addon.keys import PREFIX


class _Pool(list[Sample]):
    """The samples of a key, and whose API they are of."""

    __slots__ = ("dialect",)

    def __init__(self, dialect: str) -> None:
        super().__init__()
        self.dialect = dialect


class Memory:
    """All pools, by key: a `cache.Store` for itself."""

    def __init__(self) -> None:
        self._pools: dict[bytes, _Pool] = {}
        self._keys: dict[bytes, bytes] = {}
        """By the name of a raw body."""
        self.generation = 0
        """Rises when samples are removed."""
        self.clears = 0
        """Rises when somebody clears all, or a part."""
        self.samples = 0
        self.bytes = 0
        """Of the stored answers, and of where their streams' events ended."""
        self.by_dialect: Counter[str] = Counter()
        """Samples."""

    def __len__(self) -> int:
        return len(self._pools)

    def get(self, key: bytes) -> Sequence[Sample]:
        return self._pools.get(key, ())

    def find(self, raw: bytes) -> bytes | None:
        return self._keys.get(raw)

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        return None  # there is nothing else

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float | None = None,
    ) -> None:
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(dialect)
        if since is not None and (stale := [s for s in pool if s.stored_at < since]):
            # A raw name stays true: it says that the pool's first sample is the whole answer to a
            # body that asks for one. Each sample of the key is that, so whichever comes first is.
            pool[:] = [sample for sample in pool if sample.stored_at >= since]
            self._count(pool.dialect, stale, -1)
            self.generation += 1
        pool.extend(samples)
        if raw:
            self._keys[raw] = key
        self._count(pool.dialect, samples, 1)

    def _count(self, dialect: str, samples: Sequence[Sample], sign: int) -> None:
        self.samples += sign * len(samples)
        self.by_dialect[dialect] += sign * len(samples)
        if not self.by_dialect[dialect]:
            del self.by_dialect[dialect]
        self.bytes += sign * sum(len(sample.answer) + len(sample.deltas) for sample in samples)

    def by_model(self) -> dict[str, int]:
        """Samples by the beginnings of their keys, in hexadecimal; looks at every key."""
        counts: Counter[bytes] = Counter()
        for key, pool in self._pools.items():
            counts[key[:PREFIX]] += len(pool)
        return {prefix.hex(): count for prefix, count in counts.items()}

    def clear(self, is_cleared: Callable[[bytes], bool] | None = None) -> None:
        """Forgets the pools whose keys are to go: all, if nothing else is said."""
        self.generation += 1
        self.clears += 1
        if is_cleared is None:  # at once, however much there is
            self._pools, self._keys, self.by_dialect = {}, {}, Counter()
            self.samples = self.bytes = 0
            return
        gone = {key for key in self._pools if is_cleared(key)}
        for key in gone:
            pool = self._pools.pop(key)
            self._count(pool.dialect, pool, -1)
        self._keys = {raw: key for raw, key in self._keys.items() if key not in gone}
