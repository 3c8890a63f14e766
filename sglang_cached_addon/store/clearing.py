"""Clearing a part of a store while calls go on: nobody is held up, and nothing comes back.

A clear goes through all keys, in turns on the event loop. A key that somebody asks for before its
turn is removed then, so that from the first moment on nothing is given that was there before; what
is stored from then on stays. Knows neither what a store is made of, nor the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from sglang_cached_addon.store.totals import Totals

IsCleared = Callable[[bytes], bool]
"""Tells whether what is stored under a key is to go."""

TURN_SECONDS = 0.002
"""How long a turn takes, but for the one that takes down all keys: a millisecond for 100,000."""

STEP = 64
"""Keys between two looks at the clock."""


class Cleared(NamedTuple):
    """What a clear has removed."""

    entries: int
    samples: int


class Clearing:
    """One clear of a part of a store, from its first moment on."""

    def __init__(
        self,
        is_cleared: IsCleared,
        remove: Callable[[bytes], object],
        sums: Callable[[], Totals],
    ) -> None:
        self.is_cleared = is_cleared
        self._remove, self._sums = remove, sums
        self._stored: set[bytes] = set()
        """Keys of which something was stored since."""
        self._entries = self._samples = 0

    def heed(self, key: bytes) -> None:
        """Removes what was there before of a key that is cleared."""
        if not self.is_cleared(key) or key in self._stored:
            return
        sums = self._sums()
        entries, samples = sums.entries, sums.samples
        self._remove(key)
        self._entries += entries - sums.entries
        self._samples += samples - sums.samples

    def store(self, key: bytes) -> None:
        """Something of this key is about to be stored."""
        self.heed(key)
        self._stored.add(key)

    async def go_through(self, keys: list[bytes]) -> None:
        """Heeds all these keys."""
        while keys:
            end = time.monotonic() + TURN_SECONDS
            while keys and time.monotonic() < end:
                for key in keys[-STEP:]:
                    self.heed(key)
                del keys[-STEP:]
            await asyncio.sleep(0)  # others have their turn

    @property
    def removed(self) -> Cleared:
        """What was removed so far."""
        return Cleared(self._entries, self._samples)


class Clearings(list[Clearing]):
    """The clears of one store that are under way."""

    def __init__(
        self,
        remove: Callable[[bytes], object],
        sums: Callable[[], Totals],
        *keys: Callable[[], list[bytes]],
    ) -> None:
        """`remove` removes a key for now, and `sums` are those of the store; `keys` each give keys,
        in new lists: all that may be there."""
        super().__init__()
        self._remove, self._sums, self._keys = remove, sums, keys
        self._tasks: set[asyncio.Task[Cleared]] = set()

    def heed(self, *keys: bytes) -> None:
        """Somebody asks for these keys: as `Clearing.heed`."""
        for clearing in self:
            for key in keys:
                clearing.heed(key)

    def store(self, key: bytes) -> None:
        """As `Clearing.store`."""
        for clearing in self:
            clearing.store(key)

    def begin(
        self, model: bytes, others: bool, last: Callable[[IsCleared], Future[None]]
    ) -> Future[Cleared]:
        """Begins a clear of what belongs to a model (as a key begins), or to all others; `last` is
        called when no key is left, and is done when the disk has it. All goes on though nobody
        should wait for it."""

        def is_cleared(key: bytes) -> bool:
            return key.startswith(model) is not others

        clearing = Clearing(is_cleared, self._remove, self._sums)
        self.append(clearing)
        task = asyncio.get_running_loop().create_task(self._go(clearing, last))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asyncio.run_coroutine_threadsafe(_waited(task), task.get_loop())

    async def _go(self, clearing: Clearing, last: Callable[[IsCleared], Future[None]]) -> Cleared:
        try:
            for keys in self._keys:
                await clearing.go_through(keys())
            is_done = last(clearing.is_cleared)
        finally:
            self.remove(clearing)
        await asyncio.wrap_future(is_done)
        return clearing.removed


async def _waited(task: asyncio.Task[Cleared]) -> Cleared:
    return await asyncio.shield(task)


def after(is_done: Future[None], cleared: Cleared) -> Future[Cleared]:
    """What was removed at once, when the disk has it."""

    told: Future[Cleared] = Future()

    def tell(done: Future[None]) -> None:
        if not told.set_running_or_notify_cancel():
            return
        if why := done.exception():
            told.set_exception(why)
        else:
            told.set_result(cleared)

    is_done.add_done_callback(tell)
    return told


def let_go(*held: dict[Any, Any]) -> None:
    """Frees what is in dictionaries that nobody else has, in turns, where there is an event loop:
    to free a million entries at once takes a tenth of a second and more."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return

    def go_on() -> None:
        end = time.monotonic() + TURN_SECONDS
        while (left := next(filter(None, held), None)) is not None and time.monotonic() < end:
            for _ in range(min(STEP, len(left))):
                left.popitem()
        if left is not None:
            loop.call_soon(go_on)

    go_on()
