"""One request's samples as time passes, with what can end them early. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from sglang_cached_addon.simulator.profile import Profile
from sglang_cached_addon.simulator.sample import Run


class Left(Exception):
    """The client has left."""


class Job:
    """The samples of one request."""

    def __init__(self, runs: list[Run], held: bool) -> None:
        self.runs = runs
        self.held = held
        self.gone = False  # the client has left
        self._wake = asyncio.Event()

    def leave(self) -> None:
        self.gone = True
        self._wake.set()

    def release(self) -> None:
        self.held = False
        self._wake.set()

    def abort(self, run: Run) -> None:
        run.abort()
        self._wake.set()

    async def steps(self, profile: Profile) -> AsyncIterator[Run]:
        """Each run each time it has got a token, at the pace of the profile, up to its end."""
        while self.held and not all(run.over for run in self.runs):
            await self._nap(None)
            for run in self._news():
                yield run
        start = asyncio.get_running_loop().time() + profile.time_to_first_token
        pace = 1 / profile.tokens_per_second if profile.tokens_per_second > 0 else 0.0
        step = 0
        while not all(run.told for run in self.runs):
            step += 1
            while await self._nap(start + step * pace):
                for run in self._news():
                    yield run
            for run in self.runs:
                if run.told:
                    continue
                if not run.over:
                    run.advance(step)
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
