"""Pools that several proxies share, on a Redis or Valkey server.

Memory, or a folder, is the first level: all that is at hand is there, and `get` and `find` never
wait. The server may be slow, full, away, or come back empty: what is at hand is served, what is
short comes from upstream, and what was to be written is, once the server is back.

`protocol` has the names and scripts, `server` the connection, `link` whether it is up, `outbox` the
order of what is sent; `pools` are the lists there, `bringing` is how a call gets what it lacks,
`leases` say who may fill a pool, `news` are what proxies tell one another, and `runs` which samples
the calls of runs have.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from typing import Any

from sglang_cached_addon.core.cache import Addition, Brought, Document, Sample
from sglang_cached_addon.core.epochs import SPAN
from sglang_cached_addon.store.clearing import Cleared
from sglang_cached_addon.store.contract import Holder, OpenStore
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis.bringing import Bringing
from sglang_cached_addon.store.redis.clears import concerns, kind_of, meaning
from sglang_cached_addon.store.redis.deletions import Deletions
from sglang_cached_addon.store.redis.document import Heard, SharedDocument
from sglang_cached_addon.store.redis.link import Link
from sglang_cached_addon.store.redis.news import News, read_epochs
from sglang_cached_addon.store.redis.pools import SharedPools
from sglang_cached_addon.store.redis.protocol import REPLACED
from sglang_cached_addon.store.redis.runs import SharedRuns
from sglang_cached_addon.store.redis.server import SECONDS, Away, SharedServer

UNLESS_IT_ENDS = "; not if this proxy ends before"


class SharedStore:
    """Pools at hand, and those of a server behind them: an `OpenStore`. Belongs to an event loop,
    but for its `state`."""

    def __init__(self, url: str, local: OpenStore, run_ttl: float = inf) -> None:
        """A run that was not used for `run_ttl` seconds is forgotten. Raises ValueError for a URL
        that names no server."""
        self._local, self._link = local, Link(SharedServer(url), run_ttl)
        self.runs: SharedRuns | None = self._link.runs
        self.name = self._link.server.name
        self.salt = 1 + secrets.randbelow(SPAN - 1)
        self.memory, self.journal, self.loaded = local.memory, local.journal, local.loaded
        self.ttl, self.is_expired = local.ttl, local.is_expired
        self.get, self.find, self.touch = local.get, local.find, local.touch
        self.remove, self.room, self.has_room = local.remove, local.room, local.has_room
        self.compact, self.cleared = local.compact, local.cleared
        self._state = SharedDocument(local.state, lambda: read_epochs(url), self.publish)
        self.state: Document = self._state
        self._pools = SharedPools(local, self._link, lambda: self._news.clears)
        self._news = News(
            self._link.outbox, self._clear_local, self._pools.agree, self.delete, self._note
        )
        self._bringing = Bringing(local, self._link, self._pools, self._is_usable)
        self._deletions = Deletions(self._link.outbox, self.name, self._pools.list_of, self.delete)
        self._holder: Holder | None = None

    # What is at hand

    @property
    def index(self) -> Index | MemoryStore:
        return self._local.index

    @property
    def generation(self) -> int:
        return self._local.generation

    @property
    def clears(self) -> int:
        return self._local.clears

    @property
    def now(self) -> float:
        return self._local.now

    @property
    def lost(self) -> int:
        return self._local.lost

    def size(self, key: bytes) -> float:
        return inf

    # The server

    def facts(self) -> dict[str, Any]:
        outbox, leases = self._link.outbox, self._link.leases
        return {
            "url": self.name,
            "state": "up" if self.is_up else "down",
            "is_full": outbox.is_full,
            "pending": len(outbox),
            "pending_bytes": outbox.bytes,
            "not_shared": outbox.dropped,
            "leases": leases.count,
            "waiting": leases.waiting,
            "commands": outbox.commands,
            "round_trips": self._link.server.trips,
        }

    @property
    def unsent(self) -> int:
        outbox = self._link.outbox
        return len(outbox) if self.is_up and not outbox.is_full else 0

    @property
    def is_up(self) -> bool:
        """Whether the server answers."""
        return self._link.is_up

    # Reading and storing

    def _is_usable(self) -> bool:
        """Whether what the server has may be read: not before it knows of our clears."""
        return self.is_up and not self._news.untold

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        local = self._local.bring(needs, claims=claims)
        return self._bring(needs, local, claims=claims) if self._is_usable() else local

    async def _bring(
        self, needs: Mapping[bytes, int], local: Awaitable[Brought] | None, *, claims: bool
    ) -> Brought:
        if local:
            await local
        return await self._bringing.bring(needs, claims=claims)

    async def look(self, keys: Collection[bytes]) -> Mapping[bytes, Sequence[Sample]]:
        found = dict(await self._local.look(keys))
        with suppress(Away):
            for key in keys if self._is_usable() else ():
                found[key] = max(found.get(key, ()), await self._pools.look(key), key=len)
        return found

    def append(self, addition: Addition) -> bool:
        key, replaces = addition.key, addition.since > -inf
        before = [sample.stored_at for sample in self.get(key)] if replaces else []
        if not self._local.append(addition):
            return False
        if not replaces:
            self._pools.push(addition, max(0, len(self.get(key)) - len(addition.samples)))
        elif self._pools.replace(addition, before, self.now):
            self._news.tell(REPLACED, key)
        return True

    # Clearing

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[Cleared]:
        """Empties what is at hand now, and the server and the other proxies in their turn; the
        future is done when the server has it. It fails with `OSError` if that is away, and then
        has it before it is read again, where there is a folder by a later process, too."""
        kind = kind_of(model, others=others)
        local = self._clear_local(kind)
        self._news.untold.append(kind)
        loop = asyncio.get_running_loop()
        return asyncio.run_coroutine_threadsafe(self._clear_all(local), loop)

    async def _clear_all(self, local: Future[Cleared]) -> Cleared:
        cleared = await asyncio.wrap_future(local)
        if self.is_up:
            with suppress(Away):
                await self._news.tell_clears()
        if self._news.untold:
            self._state.known = self._news.heard()
            is_kept = await asyncio.to_thread(self._state.note) and self.journal is not None
            raise OSError(
                f"cleared here, but {self.name} does not answer: it is cleared there, and where "
                f"else it is shared, before it is used again{'' if is_kept else UNLESS_IT_ENDS}"
            )
        if not self._link.server.is_cluster:  # whose eviction removes what nobody reads
            self._link.spawn(self._news.sweep())
        return cleared

    def delete(self, key: bytes) -> Future[None]:
        self._pools.forget(lambda one: one == key)
        return self._local.delete(key)

    async def delete_everywhere(self, key: bytes) -> Future[None]:
        if not self.is_up:
            raise self._deletions.unavailable()
        return await self._deletions.delete(key)

    def _clear_local(self, kind: str) -> Future[Cleared]:
        self._pools.forget(lambda key: concerns(kind, key))
        model, others = meaning(kind)
        return self._local.clear(model, others=others)

    # The server, and other threads

    def start(self, holder: Holder) -> None:
        self._holder = holder
        if self._state.known:
            self._news.resume(self._state.known)
        self._link.start(lambda: self._news.sync(holder))

    def _note(self, known: Heard) -> None:
        if known != self._state.known:
            self._state.known = known
            self._link.spawn(asyncio.to_thread(self._state.note))

    def publish(self) -> None:
        """Tells others of raised epochs, in bounded time; for threads other than the loop's."""
        loop, holder = self._link.loop, self._holder
        if loop is None or holder is None or not self.is_up:
            return
        telling = asyncio.run_coroutine_threadsafe(self._news.tell_epochs(holder), loop)
        with suppress(TimeoutError, Away):
            telling.result(SECONDS)

    def close(self) -> None:
        """Hangs up, and closes what is at hand. What was not written is not shared."""
        self._link.close()
        self._local.close()
