"""A store in a folder: pools in memory, and the journal on disk behind them.

Memory holds what was used lately; the index of the journal knows all that is stored, and what is
not in memory is read when it is asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from math import inf
from pathlib import Path

from sglang_cached_addon.core.cache import Addition, Brought, Sample
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store import placing
from sglang_cached_addon.store.clearing import Cleared, Clearings, after
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.follower import Follower
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.loading import Loaded
from sglang_cached_addon.store.limits import NO_LIMITS, Limits
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.shrinking import Shrinking
from sglang_cached_addon.store.state import StateFile

logger = logging.getLogger(__name__)

READS = 5
"""How often pools are read from the disk again, because samples were removed meanwhile."""


class DiskStore(OpenStore):
    """Pools in memory and in the journal."""

    def __init__(
        self,
        folder: Path,
        fsync: Fsync = Fsync.INTERVAL,
        limits: Limits = NO_LIMITS,
        *,
        is_follower: bool = False,
        overwrites: bool = False,
        progress: Callable[[float], object] = lambda share: None,
    ) -> None:
        """Opens a cache folder; raises `StoreError` with what to do. A follower opens a folder that
        another process owns, and stores nothing; `overwrites` removes what is there; `progress` is
        told what share of the file is read, in the end 1."""
        self._limits = limits
        self.journal: Journal | Follower = (
            Follower(folder) if is_follower else Journal(folder, fsync)
        )
        self.memory = MemoryStore(limits.memory, evicted=self.journal.touch)
        self._follows = is_follower
        self._clearings = Clearings(
            self._forget, lambda: self.index, self.memory.keys, lambda: list(self.index)
        )
        self._shrinking = Shrinking(self.memory, self.journal, limits)
        self._removals = 0
        """Rises when samples are removed that are not in memory."""
        self._resets = 0
        """As `journal.resets` was when memory was last emptied for it."""
        self.state = StateFile(folder, is_ours=not is_follower)
        self.journal.before_restoring(self.state.save_again)
        try:
            self.loaded: Loaded = self.journal.load(progress)
        except BaseException:
            self.journal.close()
            raise
        if overwrites:
            _empty(self.journal, self.loaded)
            self.loaded = Loaded()
        if limits.ttl < inf:
            now = self.now
            for key in list(self.index):
                self.journal.expire(key, now - limits.ttl, now)
        if not is_follower:
            self._shrinking.limit(self.journal.forget, inf)

    @property
    def index(self) -> Index:
        return self.journal.index

    @property
    def generation(self) -> int:
        self._heed_resets()
        return self.memory.generation + self._removals

    def _heed_resets(self) -> None:
        """Where the journal was cut or replaced, what was read of it may be no more; nor, where it
        is another process's, what that has added to or removed."""
        if self._follows:
            for key in self.journal.news():
                self.memory.remove(key)
        if self.journal.resets != self._resets:
            self._resets = self.journal.resets
            self.memory.clear()

    @property
    def clears(self) -> int:
        return self.memory.clears

    def cleared(self, keys: Iterable[bytes]) -> int:
        return self.memory.cleared(keys)

    @property
    def ttl(self) -> float:
        return self._limits.ttl

    # Reading

    def get(self, key: bytes) -> Sequence[Sample]:
        self._heed_resets()
        if self._clearings:
            self._clearings.heed(key)
        if self.ttl < inf:
            self._removals += self._shrinking.expire(key)
        pool = self.memory.get(key)
        if not pool and key in self.index:
            self._hold(key, self.journal.read(key, waits=False))
            pool = self.memory.get(key)
        return pool

    def _hold(self, key: bytes, samples: Sequence[Sample] | None) -> None:
        """Puts a pool into memory that was read from the disk, if it is still the whole pool."""
        self._clearings.heed(key)
        if samples and key not in self.memory and len(samples) == self.index.count(key):
            self.memory.append(Addition(key, "", b"", samples))

    def size(self, key: bytes) -> float:
        self._clearings.heed(key)
        return max(self.memory.size(key), self.index.count(key))

    async def look(self, keys: Collection[bytes]) -> Mapping[bytes, Sequence[Sample]]:
        self._clearings.heed(*keys)
        here = [key for key in keys if key in self.memory]
        far = [key for key in keys if key not in self.memory and key in self.index]
        found = dict(await self.memory.look(here))
        for key, samples in await asyncio.to_thread(self._read, far):
            found[key] = [one for one in samples or () if not self.is_expired(one.stored_at)]
        return found

    def touch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if not self.memory.use(key):
                self.journal.touch(key)

    def find(self, raw: bytes) -> bytes | None:
        return self.index.find(raw)

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        self._heed_resets()
        self._clearings.heed(*needs)
        far = [key for key in needs if key not in self.memory and key in self.index]
        return self._bring(far) if far else None

    async def _bring(self, keys: Collection[bytes]) -> Brought:
        for _ in range(READS):
            before = self.generation
            found = await asyncio.to_thread(self._read, keys)
            if before == self.generation:  # else some of it may have been removed, or replaced
                for key, samples in found:
                    self._hold(key, samples)
                break
        return Brought()

    def _read(self, keys: Collection[bytes]) -> list[tuple[bytes, list[Sample] | None]]:
        """Pools as the disk has them: for a thread."""
        return [(key, self.journal.read(key, waits=True)) for key in keys]

    # Changes

    def append(self, addition: Addition) -> bool:
        # All lines of a key stay or go together, so its first one keeps what was asked: a line of
        # which nothing counts any more hands it on when it goes.
        self._heed_resets()
        key, samples = addition.key, addition.samples
        self._clearings.store(key)
        is_new = key not in self.index
        is_at_hand = is_new or key in self.memory
        have = len(self.memory.get(key))
        places, own = placing.places(self.index, addition, have, self.now)
        content, raw = addition.content if is_new else b"", addition.raw
        kept = 0
        for stop in placing.line_ends(own, samples):
            line = Addition(key, addition.dialect, content, samples[kept:stop], raw)
            if not self.journal.append(line, own[kept]):
                break
            kept, content, raw = stop, b"", b""
        if kept and is_at_hand:
            self.memory.place(addition, places[:kept])
        elif kept and addition.since > -inf:
            self._removals += 1
        self._removals += self._shrinking.expire_some()
        self._removals += self._shrinking.limit(self.journal.remove)
        return kept == len(samples)

    def remove(self, key: bytes) -> None:
        self.memory.remove(key)
        self.journal.remove(key)
        self._removals += 1

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[Cleared]:
        if isinstance(self.journal, Follower) or model is None:
            cleared = Cleared(self.index.entries, self.index.samples)
            self.memory.clear()
            return after(self.journal.clear(), cleared)
        self.memory.note_clear()
        return self._clearings.begin(model, others, partial(self.journal.purge, self.journal.mark))

    def _forget(self, key: bytes) -> None:
        """Lets go of a pool until the folder is opened again."""
        self.memory.forget(key)
        self.journal.forget(key)

    def delete(self, key: bytes) -> Future[None]:
        self.memory.delete(key)
        self._removals += 1
        return self.journal.delete(key)

    def compact(self) -> Future[None]:
        return self.journal.compact()

    def room(self) -> Awaitable[None] | None:
        room = self.journal.room()
        return asyncio.wrap_future(room) if room else None

    def has_room(self, size: int) -> bool:
        return self.journal.has_room(size)

    def close(self) -> None:
        self.journal.close()


def _empty(journal: Journal | Follower, loaded: Loaded) -> None:
    """Removes what was found at open; raises `StoreError`."""
    try:
        journal.clear().result()
    except BaseException:
        journal.close()
        raise
    logger.warning(
        "%s: emptied, as asked: %d entries (%d samples) were removed",
        *(journal.path, loaded.keys, loaded.samples),
    )
