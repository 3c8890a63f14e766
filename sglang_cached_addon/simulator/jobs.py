"""One request's samples as time passes, with what can end them early. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from sglang_cached_addon.simulator.profile import Fault, Profile
from sglang_cached_addon.simulator.sample import Run

_HALFWAY = (Fault.CUT, Fault.ERROR_EVENT, Fault.PAUSE)  # they come to pass at half of the tokens


class Left(Exception):
    """The client has left."""


class Job:
    """The samples of one request."""

    def __init__(self, runs: list[Run], fault: Fault | None) -> None:
        self.runs = runs
        self.gone = False  # the client has left
        self.waiting = False  # for `release`, or to go on after a pause of the whole server
        self._frozen = False
        self._longest = max((len(run.ids) for run in runs), default=0)
        self.turn = self._longest // 2 if fault in _HALFWAY else 0  # tokens before the fault
        self._held = fault in (Fault.HOLD, Fault.PAUSE)
        self._wake = asyncio.Event()

    def leave(self) -> None:
        self.gone = True
        self._wake.set()

    def release(self) -> None:
        self._held = False
        self._wake.set()

    def freeze(self, frozen: bool) -> None:
        """Say no more for now, or go on."""
        self._frozen = frozen
        self._wake.set()

    def abort(self, run: Run) -> None:
        run.abort(self.waiting)
        self._wake.set()

    async def steps(self, profile: Profile) -> AsyncIterator[Run]:
        """Each run each time it has got tokens, at the pace of the profile, up to its end."""
        clock = asyncio.get_running_loop().time
        due = clock() + profile.time_to_first_token
        pace = 1 / profile.tokens_per_second if profile.tokens_per_second > 0 else 0.0
        count = 0
        while not all(run.told for run in self.runs):
            self.waiting = self._frozen or (self._held and count == self.turn)
            if self.waiting:
                since = clock()
                await self._nap(None)
                due += clock() - since
                for run in self._news():
                    yield run
                continue
            stop = self.turn if count < self.turn else self._longest
            gain = min(profile.coalesce, stop - count)
            count += gain
            due += gain * pace
            while await self._nap(due):
                for run in self._news():
                    yield run
            for run in self.runs:
                if run.told:
                    continue
                if not run.over:
                    run.advance(count)
                run.told = run.over
                yield run

    async def _nap(self, until: float | None) -> bool:
        """Sleep until a time of the loop's clock (None: for ever); True when woken before."""
        left = None if until is None else until - asyncio.get_running_loop().time()
        if left is not None and left <= 0 and not self._wake.is_set():
            await asyncio.sleep(0)
        elif not self._wake.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)
        woken = self._wake.is_set()
        self._wake.clear()
        if self.gone:
            raise Left
        return woken

    def _news(self) -> Iterator[Run]:
        """The runs that ended and have not been handed on."""
        for run in self.runs:
            if run.over and not run.told:
                run.told = True
                yield run
