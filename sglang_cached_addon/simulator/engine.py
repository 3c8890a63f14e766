"""What a simulator generates and counts, without HTTP. Lives in one event loop.

Its counters may be read from any thread.
"""

from __future__ import annotations

import itertools
import random
import time

from sglang_cached_addon.simulator.draw import draw, greedy
from sglang_cached_addon.simulator.jobs import Job
from sglang_cached_addon.simulator.profile import Json, Profile
from sglang_cached_addon.simulator.sample import Ask, Run

DEFAULT_PROFILE = Profile()


class Engine:
    """One process that generates."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        self.profile = profile
        self.samples = 0
        """Samples that were generated and sent in full."""
        self.tokens = 0
        """Completion tokens of these."""
        self.running = 0
        """Samples in progress."""
        self.jobs: set[Job] = set()
        self.random_seed = random.SystemRandom().randrange(1 << 30)
        self.startup_time: Json = {"load_weight": 0.0, "tokenizer_e2e": time.perf_counter()}
        self._numbers = itertools.count(1)  # of the samples that are not greedy

    def open(self, ask: Ask) -> Job:
        """Begin the samples of a request."""
        return self.begin(Job(self.draw(ask, ask.rids())))

    def begin(self, job: Job) -> Job:
        self.jobs.add(job)
        self.running += len(job.runs)
        return job

    def draw(self, ask: Ask, rids: list[str]) -> list[Run]:
        """The samples of a request, all of one model."""
        return [draw(ask, i, rid, self.profile, self.number(ask, i)) for i, rid in enumerate(rids)]

    def number(self, ask: Ask, index: int) -> int:
        """What is mixed into a sample."""
        return 0 if greedy(ask.params[index // ask.samples]) else next(self._numbers)

    def close(self, job: Job, sent: bool) -> None:
        """End a job once; `sent`: the client gets, or would have got, all of its answer."""
        if job not in self.jobs:
            return
        self.jobs.remove(job)
        self.running -= len(job.runs)
        if sent:
            self.samples += len(job.runs)
            self.tokens += sum(run.count for run in job.runs)
