"""The stored calls that are nearest to one that is not stored.

Finds candidates by their sketches, where there is a journal, and else of the calls that were read
lately; what is not stored any more is left out. Knows asyncio, and nothing of who is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.nearest import Near, nearest, sentence
from sglang_cached_addon.core.sketch import sketch
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.lookup import Lookup
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.journal.sketches import Alike, Sketches, likest

SECONDS = 2.0
"""How long an answer may wait for what is stored to be looked through, which is done once."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """What is nearest to a call, the nearest first."""

    calls: Sequence[Near] = ()
    key: bytes = b""
    """The key of that call."""
    share: float = 1.0
    """The part of what is stored that was looked through."""

    def sentence(self, *, with_values: bool = True) -> str:
        """In words, for people."""
        text = sentence(self.calls, self.key, with_values=with_values)
        if self.share < 1.0:
            text += f" So far, {self.share:.0%} of what is stored was looked through."
        return text


NOTHING = Nearest()


class Nearby:
    """Finds what is near in one store."""

    def __init__(
        self, store: OpenStore, lookup: Lookup, sketches: Sketches | None, seconds: float = SECONDS
    ) -> None:
        self._store, self._lookup, self._sketches = store, lookup, sketches
        self._seconds = seconds

    async def of(self, known: Known, item: int = 0) -> Nearest:
        """What is nearest to a prompt of a call."""
        content, dialect = known.call.items[item], known.dialect.name
        if self._sketches:
            found = await asyncio.to_thread(self._sketches.alike, dialect, content, self._seconds)
        else:
            found = await asyncio.to_thread(_of_recent, self._lookup.recent(), dialect, content)
        index = self._store.index
        stored = [call for call in found.calls if call[0] in index]
        model = keys.prefix(self._lookup.fingerprint)
        calls = await asyncio.to_thread(nearest, content, model, stored)
        return Nearest(calls, known.keys[item], found.share)

    def close(self) -> None:
        """Nothing is looked through any more."""
        if self._sketches:
            self._sketches.close()

    async def sentence(self, known: Known, with_values: bool) -> str:
        """What is nearest to the first prompt of a call that is not stored, in words."""
        sizes = enumerate(map(self._lookup.size, known.keys))
        short = next((item for item, size in sizes if size < known.call.n), 0)
        return (await self.of(known, short)).sentence(with_values=with_values)


def _of_recent(recent: Sequence[Known], dialect: str, content: bytes) -> Alike:
    calls = (
        (key, known.dialect.name, item)
        for known in recent
        for key, item in zip(known.keys, known.call.items, strict=True)
    )
    return Alike(likest(calls, dialect, sketch(dialect, content)))
