"""What is stored, for people: lists and searches, and one entry with all that there is.

What takes long happens in a thread, one at a time, and ends after a moment: then it says how far it
has come. Answers are JSON, as they may be large. Changes nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson

from sglang_cached_addon.catalog.entry import Entry, Models
from sglang_cached_addon.catalog.query import NotFound, Query, key_prefix
from sglang_cached_addon.catalog.shelves import JournalShelf, MemoryShelf, Shelf
from sglang_cached_addon.catalog.sieve import Sieve, sieve
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.service.runs import ShownRuns
from sglang_cached_addon.store.contract import OpenStore

SECONDS = 0.7
"""How long a look takes at most."""

TURN_SECONDS = 0.0005
"""How long a look keeps the interpreter while others want it."""

MOST_SHARED = 10_000
"""So many samples of an entry are looked for where others may have stored it."""

T = TypeVar("T")


class Ambiguous(NotFound):
    """More than one key begins so."""

    def __init__(self, prefix: str, keys: list[str]) -> None:
        super().__init__(f"more than one entry has a key that begins with {prefix}")
        self.keys = keys


class Catalog:
    """The entries of one store."""

    def __init__(
        self,
        store: OpenStore,
        dialects: Mapping[str, Dialect],
        models: Callable[[], Models],
        runs: ShownRuns,
    ) -> None:
        """The dialects by name; `models` gives those that are known by then."""
        self.store = store
        self._models, self._runs = models, runs
        journal = store.journal
        self._shelf: Shelf = (
            JournalShelf(journal, dialects, store.is_expired)
            if journal
            else MemoryShelf(store.memory, dialects)
        )
        self._threads = ThreadPoolExecutor(1, "catalog")

    async def entries(self, query: Query) -> bytes:
        """Those that are wanted, newest first. Raises ValueError, LookupError for what is not
        known, and OSError."""
        models = self._models()
        used = await self._runs.used(query.run) if query.run else None
        if query.run and used is None:
            raise NotFound(f"there is no run {query.run}")
        return await self._in_thread(lambda: self._page(sieve(query, models, used), models))

    async def entry(self, prefix: str) -> bytes:
        """One of them, with all that there is. Raises as `find`."""
        key, models = await self.find(prefix), self._models()
        found = await self._in_thread(lambda: self._shelf.get(key, seeks_call=True))
        if found is None:
            raise _unknown(prefix)
        runs = await self._runs.users(key, found.samples)
        return await self._in_thread(lambda: orjson.dumps(found.as_whole(models, runs)))

    async def find(self, prefix: str) -> bytes:
        """The key that begins so. Raises ValueError for what is no key, LookupError where there is
        none, or more than one, and OSError."""
        prefix = key_prefix(prefix)
        if len(prefix) == 64 and self.store.name:  # it may be that others have stored it
            bringing = self.store.bring({bytes.fromhex(prefix): MOST_SHARED}, claims=False)
            await (bringing or asyncio.sleep(0))
        found = await self._in_thread(lambda: set(self._shelf.named(prefix)))
        if len(found) > 1:
            raise Ambiguous(prefix, sorted(key.hex() for key in found))
        if not found:
            raise _unknown(prefix)
        return found.pop()

    # In the thread

    async def _in_thread(self, action: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: _giving_way(action))

    def _page(self, wanted: Sieve, models: Models) -> bytes:
        found: list[Entry] = []
        end: object = None
        stopped = None
        deadline = time.monotonic() + SECONDS
        for cursor, entry in self._shelf.look(wanted, wanted.query.cursor):
            if entry:
                found.append(entry)
            if len(found) >= wanted.query.limit:
                end = cursor
                break
            if time.monotonic() > deadline:
                end, stopped = cursor, f"It was looked for {SECONDS:g} s: there may be more."
                break
        name = self.store.name
        page: dict[str, Any] = {
            "entries": [entry.as_json(models) for entry in found],
            "next": None if end is None else str(end),
            "stopped": stopped,
            "total": self.store.index.entries,
            "note": f"This is what is at hand: more may be on {name}." if name else None,
        }
        return orjson.dumps(page)


def _giving_way(action: Callable[[], T]) -> T:
    """Does something while the event loop has the interpreter soon whenever it wants it: for each
    of the few times that it does for one client, it would wait 5 ms."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        return action()
    finally:
        sys.setswitchinterval(usual)


def _unknown(prefix: str) -> NotFound:
    return NotFound(f"no entry has a key that begins with {prefix}")
