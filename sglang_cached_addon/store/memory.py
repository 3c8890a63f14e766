"""Pools in memory, up to a limit of bytes; those that were not used for the longest time go first.

By itself it is the store of a proxy that has no folder, and ends with the process. No I/O. Not safe
for threads: it belongs to the event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from math import inf

from sglang_cached_addon.core.cache import Addition, Brought, Sample, slots
from sglang_cached_addon.store.clearing import Cleared, Clearings, let_go
from sglang_cached_addon.store.contract import OpenStore, done
from sglang_cached_addon.store.journal.loading import Loaded
from sglang_cached_addon.store.pool import Kept, Nowhere, Pool, Samples
from sglang_cached_addon.store.removals import Removals
from sglang_cached_addon.store.snapshot import keys_of
from sglang_cached_addon.store.totals import Totals

OVERHEAD = 512
"""An estimate of the bytes of memory that a sample takes beside its answer."""

_KEPT = Pool._fields.index("kept")


class MemoryStore(Totals, OpenStore):
    """Pools by key. `bytes` are those of the answers, and of the boundaries of their events."""

    journal = None

    generation = 0
    """Rises when samples are removed, but not when they only had to make room."""

    def __init__(
        self,
        limit: float = inf,
        ttl: float = inf,
        *,
        evicted: Callable[[bytes], object] = lambda key: None,
        keeps_calls: bool = False,
    ) -> None:
        """`limit` is in bytes; `ttl` is how long a sample is kept, in seconds; `evicted` is told
        the key of each pool that has to make room, and then is to be had from elsewhere. Canonical
        calls are for people, and kept where they are to be had from nowhere else."""
        super().__init__()
        self.memory, self.state, self.loaded = self, Nowhere(), Loaded()
        self._limit, self._ttl, self._evicted = limit, ttl, evicted
        self._keeps_calls = keeps_calls
        self._removals = Removals()
        self._clearings = Clearings(self.forget, lambda: self, self.keys)
        self._pools: OrderedDict[bytes, Kept] = OrderedDict()
        self._keys: dict[bytes, bytes] = {}
        """The key of each body that has a name."""

    def __len__(self) -> int:
        return len(self._pools)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pools

    def __iter__(self) -> Iterator[bytes]:
        """The keys, least recently used first."""
        return iter(self._pools)

    @property
    def index(self) -> MemoryStore:
        return self

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def clears(self) -> int:
        return self._removals.count

    def cleared(self, keys: Iterable[bytes]) -> int:
        return self._removals.of(keys)

    def peek(self, key: bytes) -> tuple[str, bytes, tuple[Sample, ...]] | None:
        """The API, the canonical call and the samples of a pool, whose use this is not; for any
        thread. The call is empty where it is not kept."""
        pool = self._pool(key)
        return (pool.dialect, pool.call, tuple(pool.samples)) if pool else None

    def keys(self) -> list[bytes]:
        """The keys, in no order: for the event loop, which it holds as shortly as can be."""
        return list(dict.__iter__(self._pools))

    def by_age(self) -> list[bytes]:
        """The keys, those whose pools are oldest first; for any thread."""
        return keys_of(lambda: dict.__iter__(self._pools), nullcontext())

    def get(self, key: bytes) -> Sequence[Sample]:
        if self._clearings:
            self._clearings.heed(key)
        if self._ttl < inf:
            self.expire(key, (now := self.now) - self._ttl, now)
        pool = self._pools.get(key)
        if pool is None:
            return ()
        self._pools.move_to_end(key)
        kept = pool[_KEPT]
        return (Sample._make(kept[0]),) if len(kept) == 1 else Samples(kept)

    def _pool(self, key: bytes) -> Pool | None:
        pool = self._pools.get(key)
        return Pool._make(pool) if pool else None

    def _samples(self, key: bytes) -> Sequence[Sample]:
        return pool.samples if (pool := self._pool(key)) else ()

    def count(self, key: bytes) -> int:
        self._clearings.heed(key)
        pool = self._pools.get(key)
        return len(pool[_KEPT]) if pool else 0

    size = count

    async def look(self, keys: Collection[bytes]) -> Mapping[bytes, Sequence[Sample]]:
        self._clearings.heed(*keys)
        return {
            key: [one for one in self._samples(key) if not self.is_expired(one.stored_at)]
            for key in keys
        }

    def touch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.use(key)

    def use(self, key: bytes) -> bool:
        """Notes that a pool is used; whether there is one."""
        try:
            self._pools.move_to_end(key)
        except KeyError:
            return False
        return True

    def find(self, raw: bytes) -> bytes | None:
        return self._keys.get(raw)

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        return None  # there is nothing else

    def append(self, addition: Addition) -> bool:
        self._clearings.store(addition.key)
        samples, count = self._samples(addition.key), len(addition.samples)
        if addition.since == -inf:
            self.place(addition, range(len(samples), len(samples) + count))
        else:
            times = [sample.stored_at for sample in samples]
            self.place(addition, slots(times, count, addition.since, self.now))
        return True

    def place(self, addition: Addition, places: Sequence[int]) -> None:
        """Puts as many samples as there are places into these places of a pool: those of former
        samples, or behind its end."""
        key, raw, samples = addition.key, addition.raw, addition.samples[: len(places)]
        pool = self._pool(key)
        if pool is None:
            call = addition.content if self._keeps_calls else b""
            pool = Pool(addition.dialect, call)
            self.tally(key, addition.dialect, 0, len(call))
        pool, replaced = pool.put(samples, places)
        if raw and raw not in pool.names:
            pool = pool._replace(names=(*pool.names, raw))
            self._keys[raw] = key
        self._pools[key] = tuple(pool)
        self._count(key, pool, samples, 1)
        if replaced:
            # A raw name stays true: it says that the pool's first sample is the whole answer to a
            # body that asks for one. Each sample of the key is that, so whichever is first is.
            self._count(key, pool, replaced, -1)
            self.generation += 1
        self._pools.move_to_end(key)
        # What has just come is there for who waits for it, whatever its size.
        self._make_room(key)

    def room(self) -> Awaitable[None] | None:
        return None

    def has_room(self, size: int) -> bool:
        return True

    def expire(self, key: bytes, since: float, now: float) -> bool:
        """Drops the samples of a key that do not count; whether there were any."""
        before = self._pool(key)
        pool, gone = before.expire(since, now) if before else (None, ())
        if not (pool and gone):
            return False
        self._pools[key] = tuple(pool)
        self._count(key, pool, gone, -1)
        self.generation += 1
        if not pool.kept:
            self.forget(key)
        return True

    def remove(self, key: bytes) -> None:
        if key in self._pools:
            self.forget(key)
            self.generation += 1

    def _make_room(self, kept: bytes) -> None:
        """Lets go of the pools that were not used for the longest time, but for one key."""
        while self.bytes + OVERHEAD * self.samples > self._limit and len(self._pools) > 1:
            key = next(iter(self._pools))
            if key == kept:
                return  # it is the last one: all others are used less lately
            self.forget(key)
            self._evicted(key)

    def forget(self, key: bytes) -> None:
        """Lets go of a pool, if there is one, without a new generation."""
        if not (pool := self._pool(key)):
            return
        del self._pools[key]
        self._count(key, pool, pool.samples, -1)
        self.tally(key, pool.dialect, 0, -len(pool.call))
        for raw in pool.names:
            self._keys.pop(raw, None)

    def _count(self, key: bytes, pool: Pool, samples: Sequence[Sample], sign: int) -> None:
        size = sum(len(sample.answer) + len(sample.deltas) for sample in samples)
        self.tally(key, pool.dialect, sign * len(samples), sign * size)

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[Cleared]:
        self.note_clear()
        if model is not None:
            return self._clearings.begin(model, others, lambda _: done(None))
        cleared = Cleared(self.entries, self.samples)
        let_go(self._pools, self._keys)
        self._pools, self._keys = OrderedDict(), {}
        self.empty()
        return done(cleared)

    def note_clear(self) -> None:
        """All, or a part of it, is cleared from now on."""
        self.generation += 1
        self._removals.note_all()

    def delete(self, key: bytes) -> Future[None]:
        self.remove(key)
        self._removals.note(key)
        return done(None)
