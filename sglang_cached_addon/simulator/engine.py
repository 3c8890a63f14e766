"""What a simulator generates and counts, without HTTP.

Its counters may be read and `faults` filled from any thread; the rest lives in one event loop.
"""

from __future__ import annotations

import itertools
from collections import deque

from sglang_cached_addon.simulator.draw import draw, greedy
from sglang_cached_addon.simulator.jobs import Job
from sglang_cached_addon.simulator.profile import Fault, Json, Profile, Received
from sglang_cached_addon.simulator.reading import check_ranges, rids
from sglang_cached_addon.simulator.refusals import Flaw
from sglang_cached_addon.simulator.sample import Ask, Run

DEFAULT_PROFILE = Profile()


class Engine:
    """What it does (`profile`, `faults`) and what it saw and did (the rest)."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        self.profile = profile  # may be replaced at any time
        self.received: list[Received] = []  # in order of arrival
        self.samples = 0  # generated and sent in full
        self.tokens = 0  # completion tokens of these
        self.running = 0  # samples in progress, held ones too
        self.aborted = 0  # samples ended by /abort_request or because the client left
        self.events = 0  # of streams, sent; [DONE] is one
        self.faults: deque[Fault] = deque()  # each spoils one sampling request
        self.jobs: set[Job] = set()
        self.startup_time: Json = {}  # differs from start to start
        self._numbers = itertools.count(1)  # of the samples that are not greedy

    @property
    def waiting(self) -> int:
        """Requests that wait for `release`, all events before that sent."""
        return sum(job.waiting for job in tuple(self.jobs))

    def open(self, ask: Ask, fault: Fault | None) -> Job:
        """Check the values of a request and begin its samples."""
        names = rids(ask)
        check_ranges(ask)
        busy = {run.rid for job in self.jobs for run in job.runs if not run.over}
        for name in names:
            if name in busy:
                raise Flaw(f"Duplicate request ID detected: {name}")
        runs = [self._draw(ask, index, name, fault) for index, name in enumerate(names)]
        job = Job(runs[:-1] if fault is Fault.TOO_FEW else runs, fault)
        self.jobs.add(job)
        self.running += len(job.runs)
        return job

    def _draw(self, ask: Ask, index: int, rid: str, fault: Fault | None) -> Run:
        hot = not greedy(ask.params[index // ask.samples])
        return draw(ask, index, rid, self.profile, next(self._numbers) if hot else 0, fault)

    def close(self, job: Job, sent: bool) -> None:
        """End a job once; `sent`: the client gets, or would have got, all of its answer."""
        if job not in self.jobs:
            return
        self.jobs.remove(job)
        self.running -= len(job.runs)
        for run in job.runs:
            if run.aborted or (job.gone and not run.told):
                self.aborted += 1
            elif sent and run.reason["type"] != "abort":
                self.samples += 1
                self.tokens += run.count

    def abort(self, rid: str, everything: bool) -> None:
        """End running samples: all, or those whose id begins with the id of a running one."""
        runs = {run.rid: (job, run) for job in self.jobs for run in job.runs}
        if everything or rid in runs:
            for name, (job, run) in runs.items():
                if everything or name.startswith(rid):
                    job.abort(run)
