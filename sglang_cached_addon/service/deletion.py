"""Removing what is stored, wherever it is: in the store, in what was remembered, in runs.

What was fetched for it before is not stored behind that; who waits for such a fetch has its answer
all the same. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from sglang_cached_addon.service.lookup import Lookup
from sglang_cached_addon.service.runs import ShownRuns
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.journal.asides import scrub


@dataclass(frozen=True, slots=True)
class Deletion:
    """Removes what is stored."""

    store: OpenStore
    lookup: Lookup
    runs: ShownRuns

    async def delete(self, key: bytes, *, now: bool) -> int:
        """Removes a pool for good; the number of its samples. Returns when no restart brings it
        back; with `now`, when its text is not in the folder any more either. Raises OSError, and
        `Unavailable` where nothing is removed."""
        samples = self.store.index.count(key)
        is_done = await self.store.delete_everywhere(key)
        self.lookup.forget()
        self.runs.forget(key)
        await asyncio.wrap_future(is_done)
        if now:
            await asyncio.wrap_future(self.store.compact())
            if self.store.journal:
                await asyncio.to_thread(scrub, self.store.journal.path, key)
        return samples

    async def clear(
        self, models: Iterable[bytes] | None, *, others: bool = False
    ) -> tuple[int, int]:
        """Removes what belongs to models (as keys begin), or to all others; all, if there is no
        model: the numbers of entries and samples. Returns when that has happened. Raises
        OSError."""
        which = [None] if models is None else models
        are_done = [self.store.clear(model, others=others) for model in which]
        self.lookup.forget()
        cleared = await asyncio.gather(*map(asyncio.wrap_future, are_done))
        return sum(one.entries for one in cleared), sum(one.samples for one in cleared)
