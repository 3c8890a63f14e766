"""The runs that are known, by name, and where they outlive the process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import inf
from typing import Protocol

from sglang_cached_addon.core.runs import Pool, Run

PRUNE_SECONDS = 60.0
"""How often it is looked which runs are over."""


class Log(Protocol):
    """Where places outlive the process."""

    @property
    def runs(self) -> dict[str, Run]: ...

    def note(
        self, run: Run, pools: Sequence[Pool], places: Sequence[Sequence[int]], *, is_taken: bool
    ) -> None: ...

    def rewound(self, run: Run) -> None: ...

    def deleted(self, name: str) -> None: ...


class NoLog:
    """Keeps runs for as long as the process lives."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}

    def note(
        self, run: Run, pools: Sequence[Pool], places: Sequence[Sequence[int]], *, is_taken: bool
    ) -> None:
        return

    def rewound(self, run: Run) -> None:
        return

    def deleted(self, name: str) -> None:
        return


class Runs:
    """All runs."""

    def __init__(self, log: Log | None = None, ttl: float = inf) -> None:
        """A run that was not used for `ttl` seconds is forgotten."""
        self.log: Log = log or NoLog()
        self._ttl = ttl
        self._pruned_at = -inf

    def __iter__(self) -> Iterator[Run]:
        """Those that are not over, by name."""
        self._prune(time.time())
        return iter(sorted(self.log.runs.values(), key=lambda run: run.name))

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

    def rewind(self, run: Run, fresh_since: float = -inf) -> None:
        """As `Run.rewind`."""
        run.rewind(fresh_since)
        self.log.rewound(run)

    def begin(self, name: str) -> Run:
        """A run that begins behind what is stored now."""
        now = time.time()
        run = self.log.runs.setdefault(name, Run(name, now, now))
        self.rewind(run, now)
        return run

    def delete(self, name: str) -> Run | None:
        """Forgets a run, and gives what it was."""
        run = self.log.runs.pop(name, None)
        if run:
            run.is_over = True
            self.log.deleted(name)
        return run

    def _prune(self, now: float) -> None:
        self._pruned_at = now
        over = [run.name for run in self.log.runs.values() if run.last < now - self._ttl]
        for name in over:
            self.delete(name)
