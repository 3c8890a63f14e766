"""What proxies tell one another through the server: clears, pools that have changed, and epochs.

Clears and epochs are numbers that only rise: each proxy raises the server's to its own, and takes
what is higher there. So nothing is lost where the server comes back empty, and nobody needs to know
whether it has. Messages only hasten what `sync` finds anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from sglang_cached_addon.store.contract import Holder
from sglang_cached_addon.store.redis import protocol
from sglang_cached_addon.store.redis.clears import Clears
from sglang_cached_addon.store.redis.document import Heard
from sglang_cached_addon.store.redis.outbox import Outbox
from sglang_cached_addon.store.redis.protocol import CHANGES, CONTROL, DELETED, REPLACED, Result
from sglang_cached_addon.store.redis.server import Away, ask_once

STEP = 1000
"""Keys of the server that are looked at, or entries of a stream that are read, in one go."""

_CLEAR, _EPOCH = "clear:", "epoch:"
"""The beginnings of the names of numbers."""
_LAST = "clears"
"""The name of the number of the last clear."""


class News:
    """What one proxy knows of the others' changes, and tells of its own."""

    def __init__(
        self,
        outbox: Outbox,
        cleared: Callable[[str], Future[Any]],
        replaced: Callable[[bytes], Awaitable[object]],
        deleted: Callable[[bytes], Future[Any]],
        note: Callable[[Heard], object],
    ) -> None:
        """`cleared` is told the kind of each clear of others, and `replaced` each pool whose
        samples were replaced, and `deleted` each that was deleted; `note` is told what was heard
        of, when that is done."""
        self.clears = Clears()
        self.untold: list[str] = []
        """The kinds of clears that the server has not heard of."""
        self._outbox, self._cleared, self._note = outbox, cleared, note
        self._replaced, self._deleted = replaced, deleted
        self._happening: dict[str, Future[Any]] = {}
        """The clears of others that this proxy is making, by their kinds."""
        self._noted: dict[str, int] = {}
        """The numbers of the clears that have happened here, too."""
        self._is_current = False
        """Whether all clears that are known of have happened to what is at hand."""
        self._position = ""
        """The id of the last entry of the stream of changes that was read."""
        self._epochs: dict[str, int] = {}
        """The epochs that the server had last."""
        self._telling = asyncio.Lock()

    def resume(self, known: Heard) -> None:
        """Goes on from what an earlier process has heard of."""
        self.clears, self._position = Clears(known.clears), known.replaced
        self.untold, self._noted = list(known.untold), dict(known.clears)
        self._is_current = True

    async def sync(self, holder: Holder) -> None:
        """Sees what others have changed, and tells what the server does not know; raises `Away`."""
        async with self._telling:
            control = protocol.numbers(await self._do("ZRANGE", CONTROL, 0, -1, "WITHSCORES"))
            for kind in self.clears.take(_part(control, _CLEAR)):
                if self._is_current:
                    self._happening[kind] = self._cleared(kind)
            await self._read_changes()
            self._is_current = True
            mine = {f"{_CLEAR}{kind}": number for kind, number in self.clears.numbers.items()}
            if lost := {name: n for name, n in mine.items() if n > control.get(name, 0)}:
                await self._do(*protocol.raise_numbers(lost))
            await self._tell_clears()
            self._note(self.heard())
        self._epochs = _part(control, _EPOCH)
        await self.tell_epochs(holder)
        known = holder.epochs.as_numbers()
        names = known.keys() | self._epochs.keys()
        holder.adopt(known, {n: max(known.get(n, 0), self._epochs.get(n, 0)) for n in names})

    async def _do(self, *command: object) -> Result:
        result = await self._outbox.ask(*command)
        if isinstance(result, Exception):
            raise Away(str(result))
        return result

    def heard(self) -> Heard:
        """What is to outlive this process. A clear that has not happened here is made again."""
        self._happening = {kind: one for kind, one in self._happening.items() if _is_open(one)}
        former = {kind: self._noted.get(kind, 0) for kind in self._happening}
        self._noted = self.clears.numbers | former
        return Heard(self._noted, self._position, list(self.untold))

    # Clears

    async def tell_clears(self) -> None:
        """Numbers our clears; raises `Away`."""
        async with self._telling:
            await self._tell_clears()

    async def _tell_clears(self) -> None:
        while self.untold:
            kind = self.untold[0]
            # Above all that is known, though the server may have lost it.
            await self._do(*protocol.raise_numbers({_LAST: self.clears.last}))
            number = int(float(await self._do("ZINCRBY", CONTROL, 1, _LAST)))
            await self._do(*protocol.raise_numbers({f"{_CLEAR}{kind}": number}))
            self._outbox.tell(protocol.publish_change())
            self.untold.pop(0)
            self.clears.take({kind: number})
            self._note(self.heard())

    async def sweep(self) -> None:
        """Removes the lists that were cleared, which nobody reads any more, as far as the server
        answers."""
        cursor: object = None
        with suppress(Away):
            while cursor != 0:
                found = await self._do("SCAN", cursor or 0, "MATCH", protocol.LISTS, "COUNT", STEP)
                cursor, names = int(str(found[0])), found[1]
                if gone := [name for name in names if self._is_gone(name)]:
                    await self._do("UNLINK", *gone)

    def _is_gone(self, name: bytes) -> bool:
        try:
            key, number = protocol.pool_of(name)
        except ValueError:
            return False
        return number < self.clears.of(key)

    # Pools that have changed

    def tell(self, what: bytes, key: bytes) -> None:
        """Tells of a pool that was `REPLACED` or `DELETED`. The order is that of the writes."""
        self._outbox.tell(protocol.tell(what, key))
        self._outbox.tell(protocol.publish_change())

    async def _read_changes(self) -> None:
        if not self._position:  # nothing is at hand that has changed before
            last = protocol.entries(await self._do("XREVRANGE", CHANGES, "+", "-", "COUNT", 1))
            self._position = last[0][0] if last else "0-0"
        while True:
            start = f"({self._position}"
            found = protocol.entries(await self._do("XRANGE", CHANGES, start, "+", "COUNT", STEP))
            deleted = {key for _, what, key in found if what == DELETED}
            # It is not noted as heard of before the disk has it, or has refused it.
            gone = (asyncio.wrap_future(self._deleted(key)) for key in deleted)
            await asyncio.gather(*gone, return_exceptions=True)
            if found:
                replaced = {key for _, what, key in found if what == REPLACED}
                await asyncio.gather(*(self._replaced(key) for key in replaced))
                self._position = found[-1][0]
            if len(found) < STEP:
                return

    # Epochs

    async def tell_epochs(self, holder: Holder) -> None:
        """Raises the server's epochs to ours; raises `Away`."""
        mine = holder.epochs.as_numbers()
        if new := {name: n for name, n in mine.items() if n > self._epochs.get(name, 0)}:
            await self._do(
                *protocol.raise_numbers({f"{_EPOCH}{name}": n for name, n in new.items()})
            )
            self._outbox.tell(protocol.publish_change())
            self._epochs |= new


def read_epochs(url: str) -> dict[str, int]:
    """The epochs that a server knows, in bounded time, from any thread; none if it is away."""
    answer = ask_once(url, "ZRANGE", CONTROL, 0, -1, "WITHSCORES")
    return _part(protocol.numbers(answer), _EPOCH) if answer else {}


def _is_open(one: Future[Any]) -> bool:
    """Whether something has not happened, or has failed."""
    return not one.done() or one.cancelled() or one.exception() is not None


def _part(control: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): number
        for name, number in control.items()
        if name.startswith(prefix)
    }
