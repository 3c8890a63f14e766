"""Pools in memory: key to samples, as many as a limit allows, least recently used out first.

No I/O. Not safe for threads: it belongs to the event loop.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from sglang_cached_addon.cache import Brought, Sample
from sglang_cached_addon.keys import PREFIX

OVERHEAD = 512
"""Bytes of memory that a sample takes beside what it holds: an estimate."""


class _Pool(list[Sample]):
    """The samples of a key, whose API they are of, and what bodies they answer."""

    __slots__ = ("dialect", "names")

    def __init__(self, dialect: str) -> None:
        super().__init__()
        self.dialect = dialect
        self.names: tuple[bytes, ...] = ()


class Memory:
    """Pools by key: a `cache.Store` for itself."""

    def __init__(
        self,
        limit: float = float("inf"),
        *,
        is_pinned: Callable[[bytes], bool] = lambda key: False,
        evicted: Callable[[bytes], object] = lambda key: None,
    ) -> None:
        """`limit` is in bytes. What is pinned stays; `evicted` is told what does not."""
        self._limit = limit
        self._is_pinned = is_pinned
        self._evicted = evicted
        self._pools: OrderedDict[bytes, _Pool] = OrderedDict()
        self._keys: dict[bytes, bytes] = {}
        """By the name of a raw body."""
        self.generation = 0
        """Rises when samples are removed; those that only had to make room are none of them."""
        self.clears = 0
        """Rises when somebody clears all, or a part."""
        self.samples = 0
        self.bytes = 0
        """Of the stored answers, and of where their streams' events ended."""
        self.by_dialect: Counter[str] = Counter()
        """Samples."""

    def __len__(self) -> int:
        return len(self._pools)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pools

    def __iter__(self) -> Iterator[bytes]:
        """The keys, least recently used first."""
        return iter(self._pools)

    @property
    def horizon(self) -> float:
        return float("-inf")

    def get(self, key: bytes) -> Sequence[Sample]:
        pool = self._pools.get(key)
        if pool is None:
            return ()
        self._pools.move_to_end(key)
        return pool

    def touch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if key in self._pools:
                self._pools.move_to_end(key)

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
        # Before, so that what has just come is there for who waits for it, whatever its size.
        self._make_room()
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(dialect)
        elif since is not None:
            self._drop(pool, since)
        pool.extend(samples)
        self._pools.move_to_end(key)
        if raw and raw not in pool.names:
            pool.names += (raw,)
            self._keys[raw] = key
        self._count(pool.dialect, samples, 1)

    def expire(self, key: bytes, before: float) -> None:
        """Drops the samples of a key that were stored before a time."""
        pool = self._pools.get(key)
        if pool is not None:
            self._drop(pool, before)
            if not pool:
                self._forget(key)

    def _drop(self, pool: _Pool, before: float) -> None:
        if stale := [sample for sample in pool if sample.stored_at < before]:
            # A raw name stays true: it says that the pool's first sample is the whole answer to a
            # body that asks for one. Each sample of the key is that, so whichever comes first is.
            pool[:] = [sample for sample in pool if sample.stored_at >= before]
            self._count(pool.dialect, stale, -1)
            self.generation += 1

    def discard(self, key: bytes) -> None:
        """Removes the samples of a key."""
        if key in self._pools:
            self._forget(key)
            self.generation += 1

    def _make_room(self) -> None:
        if not self._is_too_much():
            return
        victims = []
        weight = self._weight
        for key, pool in self._pools.items():
            if weight <= self._limit:
                break
            if not self._is_pinned(key):
                weight -= sum(_size(sample) + OVERHEAD for sample in pool)
                victims.append(key)
        for key in victims:
            self._forget(key)
            self._evicted(key)

    @property
    def _weight(self) -> int:
        return self.bytes + OVERHEAD * self.samples

    def _is_too_much(self) -> bool:
        return self._weight > self._limit

    def _forget(self, key: bytes) -> None:
        pool = self._pools.pop(key)
        self._count(pool.dialect, pool, -1)
        for raw in pool.names:
            self._keys.pop(raw, None)

    def _count(self, dialect: str, samples: Sequence[Sample], sign: int) -> None:
        self.samples += sign * len(samples)
        self.by_dialect[dialect] += sign * len(samples)
        if not self.by_dialect[dialect]:
            del self.by_dialect[dialect]
        self.bytes += sign * sum(map(_size, samples))

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
            self._pools, self._keys, self.by_dialect = OrderedDict(), {}, Counter()
            self.samples = self.bytes = 0
            return
        for key in [key for key in self._pools if is_cleared(key)]:
            self._forget(key)


def _size(sample: Sample) -> int:
    return len(sample.answer) + len(sample.deltas)
