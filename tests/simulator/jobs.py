"""One request's samples as time passes, with what can end or hold them. Lives in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from sglang_cached_addon.simulator import jobs as small
from sglang_cached_addon.simulator import sample
from sglang_cached_addon.simulator.jobs import Left
from sglang_cached_addon.simulator.profile import Json
from tests.simulator.profile import Fault, Profile

ABORTED: Json = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
ABORTED_IN_QUEUE: Json = {"type": "abort", "message": "Abort in waiting queue"}
_HALFWAY = (Fault.CUT, Fault.ERROR_EVENT, Fault.PAUSE)  # they come to pass at half of the tokens


@dataclass
class Run(sample.Run):
    """One sample on its way, which can be aborted."""

    spans: list[tuple[str, float]] = field(default_factory=list)
    """Labels of the weights, and the share of the tokens at which each of them ends."""
    told: bool = False  # the end has been handed on
    aborted: bool = False  # by a client
    queued: bool = False  # it was aborted before it began

    @classmethod
    def of(cls, run: sample.Run, fault: Fault | None) -> Run:
        """A drawn sample, with what goes wrong with it."""
        own = cls(**vars(run))
        if fault is Fault.TWO_WEIGHTS:
            own.spans = [(own.version, 0.5), (f"{own.version}-next", 1.0)]
        elif fault is Fault.OTHER_VERSION:
            own.spans = [(f"{own.version}-other", 1.0)]
        else:
            own.spans = [(own.version, 1.0)]
        own.version = own.spans[-1][0]
        if fault is Fault.ABORT:
            own.shorten(len(own.ids) // 2)
        return own

    @property
    def prompt_tokens(self) -> int:
        return 0 if self.queued else super().prompt_tokens

    def weight_versions(self) -> list[Json]:
        found, start = [], 0
        for version, share in self.spans:
            end = int(share * self.count)
            found.append({"version": version, "start": start, "end": end})
            start = end
        return found

    def shorten(self, count: int) -> None:
        """Say no more than these tokens, and that it was aborted."""
        self.text, self.reason = self.said(0, count), ABORTED
        del self.tokens[count:], self.ids[count:]

    def abort(self, waiting: bool) -> None:
        """End it with what it has said; one that has not begun may still wait for its turn."""
        if not self.over:
            self.over = self.aborted = True
            self.shorten(self.count)
            if waiting and not self.count:
                self.queued, self.reason = True, ABORTED_IN_QUEUE


class Job(small.Job):
    """The samples of one request, which may be held, aborted, cut or fail."""

    def __init__(self, runs: list[Run], fault: Fault | None) -> None:
        super().__init__(runs)
        self.runs: list[Run] = runs
        self.fault = fault
        self.fail: Callable[[], Awaitable[None]] | None = None  # tells of a failure half way
        self.waiting = False  # for `release`, or to go on after a pause of the whole server
        self._frozen = False
        longest = max((len(run.ids) for run in runs), default=0)
        self.turn = longest // 2 if fault in _HALFWAY else 0  # tokens before the fault
        self._held = fault in (Fault.HOLD, Fault.PAUSE)
        self._wake = asyncio.Event()

    def leave(self) -> None:
        super().leave()
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
            count += 1
            due += pace
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
                if self.fail is not None and run.count >= self.turn:
                    await self.fail()
                    return

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
        if self.gone.is_set():
            raise Left
        return woken

    def _news(self) -> Iterator[Run]:
        """The runs that ended and have not been handed on."""
        for run in self.runs:
            if run.over and not run.told:
                run.told = True
                yield run
