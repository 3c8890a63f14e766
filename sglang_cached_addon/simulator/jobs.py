"""One request's samples as time passes, until its client leaves. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sglang_cached_addon.simulator.profile import Profile
from sglang_cached_addon.simulator.sample import Run


class Left(Exception):
    """The client has left."""


class Job:
    """The samples of one request."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.gone = asyncio.Event()
        """Set when the client has left."""

    def leave(self) -> None:
        self.gone.set()

    async def steps(self, profile: Profile) -> AsyncIterator[Run]:
        """Each run each time it has got tokens, at the pace of the profile, up to its end."""
        due = asyncio.get_running_loop().time() + profile.time_to_first_token
        pace = 1 / profile.tokens_per_second if profile.tokens_per_second > 0 else 0.0
        count = 0
        while not all(run.over for run in self.runs):
            count += 1
            due += pace
            await self._sleep(due)
            for run in [run for run in self.runs if not run.over]:
                run.advance(count)
                yield run

    async def _sleep(self, until: float) -> None:
        """Sleep until a time of the loop's clock. Raises Left."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            await asyncio.sleep(0)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), left)
        if self.gone.is_set():
            raise Left
