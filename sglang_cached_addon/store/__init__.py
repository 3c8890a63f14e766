"""Where samples live: pools in memory, and the journal on disk behind them.

`DiskStore` puts the two together. Memory holds what was used lately; the index of the journal
knows all that is stored, and what is not in memory is read when it is asked for. Knows nothing of
HTTP, dialects or mitmproxy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from math import inf
from pathlib import Path

from sglang_cached_addon.core.cache import Brought, Sample, counts, slots
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.follower import Follower
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.loading import Loaded
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.store.state import StateFile

__all__ = ["DiskStore", "Limits", "Loaded", "StoreError", "machine_memory"]


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept, and for how long."""

    entries: float = inf
    """Keys."""
    bytes: float = inf
    """Of the journal's lines that count."""
    ttl: float = inf
    """Seconds, of a sample."""
    memory: float = inf
    """Bytes of samples in memory."""


STEP = 128
"""What has grown beyond a limit is cut by that part of it, so that it is not done with each line;
small limits are kept to the letter."""

VICTIMS = 256
"""So many entries go at once: others wait meanwhile."""

READS = 5
"""How often what is on disk is read again, because something was removed meanwhile."""

SWEEP = 64
"""Entries that are looked at for expired samples with each one that is stored."""


class DiskStore(OpenStore):
    """Pools in memory and in the journal."""

    def __init__(
        self,
        folder: Path,
        fsync: Fsync = Fsync.INTERVAL,
        limits: Limits = Limits(),
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
        self.memory = Memory(limits.memory, evicted=self.journal.touch)
        self._unswept: list[bytes] = []
        self._swept = 0
        """Entries of the index that were looked at, or are about to be."""
        self._removals = 0
        self._resets = 0
        self.state = StateFile(folder, is_ours=not is_follower)
        """What is known of the upstream, beside the answers."""
        self.journal.before_restoring(self.state.save_again)
        try:
            self.loaded: Loaded = self.journal.load(progress)
        except BaseException:
            self.journal.close()
            raise
        if overwrites:
            self._overwrite()
        if limits.ttl < inf:
            now = self.now
            for key in list(self.index):
                self.journal.expire(key, now - limits.ttl, now)
        if not is_follower:
            self._limit(self.journal.forget, inf)

    def _overwrite(self) -> None:
        """Raises `StoreError`."""
        try:
            self.journal.clear().result()
        except BaseException:
            self.journal.close()
            raise
        logger.warning(
            "%s: emptied, as asked: %d entries (%d samples) were removed",
            self.journal.path,
            self.loaded.keys,
            self.loaded.samples,
        )
        self.loaded = Loaded()

    @property
    def index(self) -> Index:
        """What is stored."""
        return self.journal.index

    @property
    def generation(self) -> int:
        if self.journal.resets != self._resets:
            self._resets = self.journal.resets
            self.memory.clear()
        return self.memory.generation + self._removals

    def _follow(self) -> None:
        """Lets go of pools that have grown behind our back."""
        for key in self.journal.news():
            self.memory.discard(key)

    @property
    def clears(self) -> int:
        return self.memory.clears

    @property
    def ttl(self) -> float:
        """Seconds that a sample is kept."""
        return self._limits.ttl

    @property
    def now(self) -> float:
        return time.time()

    def is_expired(self, stored_at: float) -> bool:
        return self.ttl < inf and not counts(stored_at, (now := self.now) - self.ttl, now)

    # Reading

    def get(self, key: bytes) -> Sequence[Sample]:
        if self.journal.resets != self._resets:
            _ = self.generation
        if self._limits.ttl < inf:
            self._expire(key)
        pool = self.memory.get(key)
        if not pool and key in self.index:
            self._hold(key, self.journal.read(key, waits=False))
            pool = self.memory.get(key)
        return pool

    def _hold(self, key: bytes, samples: Sequence[Sample] | None) -> None:
        """To memory, from the disk, if that is still all there is."""
        if samples and key not in self.memory and len(samples) == self.index.count(key):
            self.memory.append(key, "", b"", samples)

    def touch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if key in self.memory:
                self.memory.get(key)
            else:
                self.journal.touch(key)

    def find(self, raw: bytes) -> bytes | None:
        return self.index.find(raw)

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        self._follow()
        far = [key for key in needs if key not in self.memory and key in self.index]
        return self._bring(far) if far else None

    async def _bring(self, keys: Collection[bytes]) -> Brought:
        def read() -> list[tuple[bytes, list[Sample] | None]]:
            return [(key, self.journal.read(key, waits=True)) for key in keys]

        for _ in range(READS):
            before = self.generation
            found = await asyncio.to_thread(read)
            if before == self.generation:  # else some of it may have been removed, or replaced
                for key, samples in found:
                    self._hold(key, samples)
                break
        return Brought()

    # Changes

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float = -inf,
    ) -> bool:
        # All lines of a key stay or go together, so its first one keeps what was asked: a line of
        # which nothing counts any more hands it on when it goes.
        if self.journal.resets != self._resets:
            _ = self.generation
        is_new, said, name = key not in self.index, content, raw
        is_at_hand = is_new or key in self.memory
        places, own = self._places(key, len(samples), since)
        kept = 0
        for stop in _ends(own, samples):
            some = samples[kept:stop]
            if not self.journal.append(
                key, dialect, said if is_new else None, some, name, own[kept]
            ):
                break
            kept, is_new, name = stop, False, b""
        if kept and is_at_hand:
            self.memory.place(key, dialect, samples[:kept], places[:kept], raw)
        elif kept and since > -inf:
            self._removals += 1
        self._sweep()
        self._limit(self.journal.remove)
        return kept == len(samples)

    def _places(self, key: bytes, count: int, since: float) -> tuple[Sequence[int], Sequence[int]]:
        """Where new samples come to be: counted from the beginning of the pool, and their slots."""
        end = self.index.end(key)
        if since == -inf:
            have = len(self.memory.peek(key))
            return range(have, have + count), range(end, end + count)
        pool = [(run.slot + i, run.at) for run in self.index.runs(key) for i in range(run.samples)]
        places = slots([at for _, at in pool], count, since, self.now)
        have = len(pool)
        return places, [pool[at][0] if at < have else end + at - have for at in places]

    def remove(self, key: bytes) -> None:
        """Lets go of a pool."""
        self.memory.discard(key)
        self.journal.remove(key)
        self._removals += 1

    def _expire(self, key: bytes) -> None:
        """Lets go of what has expired of a pool, wherever it stands in it."""
        now = self.now
        since = now - self.ttl
        is_gone = self.memory.expire(key, since, now)
        if is_gone or (key not in self.memory and not self.index.is_within(key, since, now)):
            self.journal.expire(key, since, now)
            self._removals += 1

    def _sweep(self) -> None:
        """Looks for what has expired and is not asked for, a little at a time."""
        if self._limits.ttl == inf:
            return
        if not self._unswept:
            self._unswept = list(islice(self.index, self._swept, self._swept + SWEEP * SWEEP))
            self._swept = self._swept + len(self._unswept) if self._unswept else 0
        for _ in range(min(SWEEP, len(self._unswept))):
            self._expire(self._unswept.pop())

    def _limit(self, remove: Callable[[bytes], object], most: float = VICTIMS) -> None:
        """Removes what was not used for the longest time, if there is too much."""
        limits, index = self._limits, self.index
        entries, size = len(index), index.bytes
        if entries <= limits.entries and size <= limits.bytes:
            return
        least_entries, least_bytes = _below(limits.entries), _below(limits.bytes)
        # What is in memory was used after what is not.
        cold = (key for key in index if len(self.memory) < entries and key not in self.memory)
        hot = (key for key in self.memory if key in index)
        victims: list[bytes] = []
        for key in chain(cold, hot):
            is_enough = entries <= least_entries and size <= least_bytes
            if is_enough or (len(victims) >= most):
                break
            victims.append(key)
            entries -= 1
            size -= index.weight(key)
        for key in victims:
            self.memory.discard(key)
            remove(key)
        self._removals += 1

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[None]:
        """Empties memory now and the file in its turn; the future is done when the disk has it.
        With a `model`, only what belongs to it (as a key begins), or to all `others`."""
        self._unswept.clear()
        if model is None:
            self.memory.clear()
            return self.journal.clear()

        self.memory.clear(model, others=others)
        return self.journal.clear(lambda key: key.startswith(model) is not others)

    def room(self) -> Awaitable[None] | None:
        room = self.journal.room()
        return asyncio.wrap_future(room) if room else None

    def has_room(self, size: int) -> bool:
        return self.journal.has_room(size)

    def compact(self) -> Future[None]:
        """As `Journal.compact`."""
        return self.journal.compact()

    def close(self) -> None:
        """Writes what is pending, and lets go of the folder."""
        self.journal.close()


def machine_memory() -> float:
    """Bytes that this process may count on: the machine's, or its container's."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        found = min(found, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def _ends(own: Sequence[int], samples: Sequence[Sample]) -> Iterator[int]:
    """Where to part samples, so that each part is one line: of slots side by side, and of one
    time."""
    for i in range(1, len(samples)):
        one, other = samples[i - 1], samples[i]
        is_of_one = (one.stored_at, one.seconds) == (other.stored_at, other.seconds)
        if own[i] != own[i - 1] + 1 or not is_of_one:
            yield i
    if samples:
        yield len(samples)


def _below(limit: float) -> float:
    """To what is cut what has grown beyond a limit."""
    return limit if limit == inf else limit - limit // STEP
