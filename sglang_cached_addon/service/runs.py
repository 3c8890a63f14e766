"""The runs that are known, by name: those of this process, and where they outlive it, and what is
to be known of those that several proxies share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, Protocol

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.places import Pool, Used, pool_of
from sglang_cached_addon.core.runs import Run

PRUNE_SECONDS = 60.0
"""How often it is looked which runs are over."""


class Log(Protocol):
    """Where places outlive the process."""

    @property
    def runs(self) -> dict[str, Run]: ...

    def note(self, run: Run, pools: Iterable[Pool]) -> None:
        """Other places of these pools are taken now."""

    def rewound(self, run: Run) -> None: ...

    def deleted(self, run: Run) -> None: ...


class NoLog:
    """Keeps runs for as long as the process lives."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    def note(self, run: Run, pools: Iterable[Pool]) -> None:
        return

    def rewound(self, run: Run) -> None:
        return

    def deleted(self, run: Run) -> None:
        return


class SharedRun(Protocol):
    """A run that several proxies share. Samples are known by marks."""

    reused: int
    generated: int

    @property
    def fresh_since(self) -> float:
        """As `Run.fresh_since`."""

    @property
    def current(self) -> object:
        """What is known of the run, beside of its marks."""

    @property
    def turn(self) -> int:
        """Rises when the run begins anew: what was taken before is not to be given back."""

    def is_free(self, mark: int) -> bool:
        """Whether a sample is not taken, as far as is known here."""

    async def take(self, wants: Iterable[tuple[int, Sequence[int]]]) -> Sequence[int] | None:
        """Takes so many of each group of marks, the first ones that nobody has: the marks of those
        that were. They are not all that is free if its `current` was another one before. None where
        nobody can know what is taken."""

    def hold(self, mark: int) -> bool:
        """Takes a sample that nobody else knows of yet."""

    def settle(self, marks: Iterable[int], turn: int, *, is_delivered: bool) -> None:
        """What was taken in this turn was delivered, or is free again."""


Shown = dict[str, Any]
"""What people are told of a run."""


class ShownRuns(Protocol):
    """Runs, as people see and change them. Raises OSError where that cannot be."""

    async def shown(self) -> list[Shown]:
        """Those that are not over, by name."""

    async def show(self, name: str) -> Shown | None:
        """The run of that name, if it was ever used."""

    async def rewind(self, name: str) -> Shown | None:
        """As `Run.rewind`."""

    async def begin(self, name: str) -> Shown | None:
        """Has a run begin behind what is stored now."""

    async def delete(self, name: str) -> Shown | None:
        """Forgets a run, and gives what it was."""

    async def users(self, key: bytes, samples: Sequence[Sample]) -> list[list[str]]:
        """For each sample of a pool the names of the runs that have it."""

    async def free(self, name: str, key: bytes, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those samples of a pool that the next call of a run may have."""

    async def used(self, name: str) -> Used | None:
        """Tells of pools whether a run has any of their samples; None if there is no such run."""

    def forget(self, key: bytes) -> None:
        """A pool is no more: new samples will have its places."""


class SharedRuns(ShownRuns, Protocol):
    """Those that several proxies share."""

    def use(self, name: str, now: float) -> SharedRun:
        """The run of that name, for a call at this Unix time."""


class Runs:
    """Those of this process."""

    def __init__(self, log: Log | None = None, ttl: float = inf) -> None:
        """A run that was not used for `ttl` seconds is forgotten."""
        self.log: Log = log or NoLog()
        self._ttl = ttl
        self._pruned_at = -inf

    def get(self, name: str) -> Run | None:
        """The run of that name, if it was ever used."""
        self._prune(time.time())
        return self.log.runs.get(name)

    def use(self, name: str, now: float) -> Run:
        """The run of that name, for a call at this Unix time."""
        if now > self._pruned_at + PRUNE_SECONDS:
            self._prune(now)
        run = self.log.runs.get(name)
        if run is None:
            run = self.log.runs[name] = Run(name, now, now)
        run.last = now
        run.calls += 1
        return run

    def _rewind(self, run: Run, fresh_since: float = -inf) -> Shown:
        run.rewind(fresh_since)
        self.log.rewound(run)
        return run.as_json()

    def _delete(self, run: Run) -> Shown:
        del self.log.runs[run.name]
        run.is_over = True
        self.log.deleted(run)
        return run.as_json()

    def _prune(self, now: float) -> None:
        self._pruned_at = now
        for run in [run for run in self.log.runs.values() if run.last < now - self._ttl]:
            self._delete(run)

    # As `ShownRuns`

    async def shown(self) -> list[Shown]:
        self._prune(time.time())
        return [run.as_json() for _, run in sorted(self.log.runs.items())]

    async def show(self, name: str) -> Shown | None:
        run = self.get(name)
        return run.as_json() if run else None

    async def rewind(self, name: str) -> Shown | None:
        run = self.get(name)
        return self._rewind(run) if run else None

    async def begin(self, name: str) -> Shown | None:
        now = time.time()
        return self._rewind(self.log.runs.setdefault(name, Run(name, now, now)), now)

    async def delete(self, name: str) -> Shown | None:
        run = self.get(name)
        return self._delete(run) if run else None

    async def users(self, key: bytes, samples: Sequence[Sample]) -> list[list[str]]:
        pool, runs = pool_of(key), sorted(self.log.runs.items())
        taken = [(name, run.places[pool]) for name, run in runs]
        return [[name for name, some in taken if at in some] for at in range(len(samples))]

    async def free(self, name: str, key: bytes, samples: Sequence[Sample]) -> Sequence[Sample]:
        run = self.log.runs.get(name)
        if run is None:
            return samples
        pool, begin = pool_of(key), 0
        if run.is_fresh and not run.places.has_floor(pool):
            old = (k for k, one in enumerate(samples, 1) if one.stored_at < run.fresh_since)
            begin = max(old, default=0)
        free = run.places.free(pool, len(samples))
        return [samples[place] for place in free if place >= begin]

    async def used(self, name: str) -> Used | None:
        run = self.get(name)
        if run is None:
            return None
        pools = frozenset(run.places)
        return Used(lambda key, samples: pool_of(key) in pools, pools)

    def forget(self, key: bytes) -> None:
        pool = pool_of(key)
        for run in self.log.runs.values():
            if run.places.drop(pool):
                self.log.note(run, (pool,))
