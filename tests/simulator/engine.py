"""An engine that can be told what to do, and tells what it saw.

Its counters may be read, `faults` filled, `become` and `says` called from any thread; the rest
lives in one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sglang_cached_addon.simulator import engine as small
from sglang_cached_addon.simulator.draw import draw
from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.sample import Ask
from sglang_cached_addon.simulator.sampling import APIS
from tests.simulator import checks
from tests.simulator.jobs import Job, Run
from tests.simulator.lora import Adapters
from tests.simulator.profile import CONTENT, Fault, Profile, Received

DEFAULT_PROFILE = Profile()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model at one moment."""

    profile: Profile
    launched: Profile  # before updates
    adapters: Adapters


class Engine(small.Engine):
    """What it does (`profile`, `faults`) and what it saw and did (the rest).

    `boot` makes another process of it; what it saw and did, and its faults, stay.
    """

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        self._lock = threading.Lock()  # of who replaces `loaded`
        super().__init__(profile)
        self.received: list[Received] = []  # in order of arrival, but for probes
        self.probes: list[Received] = []  # calls that only ask whether one may generate
        self.aborted = 0  # samples ended by /abort_request or because the client left
        self.events = 0  # of streams, sent; [DONE] is one
        self.faults: deque[Fault] = deque()  # each spoils one sampling request
        self.twist: Callable[[list[Json]], Any] = list  # what becomes of the rows of vectors
        self.resting: set[asyncio.Future[None]] = set()  # see `parked`
        self._updates = itertools.count(1)  # of the weights
        self.boot(profile)

    def boot(self, profile: Profile) -> None:
        """Be a process that was just started."""
        self.profile = profile
        self.paused = False  # by /pause_generation
        self.random_seed = random.SystemRandom().randrange(1 << 30)
        self.startup_time: Json = {"load_weight": 0.0, "tokenizer_e2e": time.perf_counter()}

    @property
    def profile(self) -> Profile:
        """What is served; may be replaced at any time, which is like `become`."""
        return self.loaded.profile

    @profile.setter
    def profile(self, profile: Profile) -> None:
        with self._lock:
            self.loaded = Loaded(profile, profile, Adapters(profile))

    @property
    def adapters(self) -> Adapters:
        return self.loaded.adapters

    def become(self, **changes: Any) -> None:
        """Replace fields of the profile at once, as if it had been started so.

        No process ends: `startup_time`, connections and running samples stay. Loaded adapters
        stay too, unless `lora_paths` is given.
        """
        with self._lock:
            old = self.loaded
            profile = replace(old.profile, **changes)
            anew = not {"lora_paths"}.isdisjoint(changes)
            adapters = Adapters(profile) if anew else old.adapters
            self.loaded = Loaded(profile, replace(old.launched, **changes), adapters)

    def update(self, weights: str | None, **changes: Any) -> None:
        """A change while it runs, which a restart undoes.

        `weights` says where new ones are from: they are unlike all before, save those on disk
        (""), which are the model's. None: the weights stay.
        """
        with self._lock:
            if weights is not None:
                changes["weights"] = weights and f"{weights}-{next(self._updates)}"
            self.loaded = replace(self.loaded, profile=replace(self.profile, **changes))

    @property
    def waiting(self) -> int:
        """Requests that wait for `release`, all events before that sent."""
        return sum(job.waiting for job in tuple(self.jobs))

    @property
    def parked(self) -> int:
        """Requests that wait for /continue_generation, or out the `info_delay`."""
        return len(self.resting)

    def spoil(self, ask: Ask, fault: Fault | None) -> Job:
        """Check the values of a request and begin its samples, of which one fault may be made."""
        checks.rids(ask, {run.rid for job in self.jobs for run in job.runs if not run.over})
        runs = [Run.of(run, fault) for run in self._drawn(ask, ask.rids(), {})]
        job = Job(runs[:-1] if fault is Fault.TOO_FEW else runs, fault)
        self.begin(job)
        return job

    def _drawn(self, ask: Ask, names: list[str], changes: Json) -> list[Any]:
        """The samples of a request, all of one model."""
        loaded = self.loaded
        profile = replace(loaded.profile, **changes)
        adapters = loaded.adapters.chosen(ask, profile.served)
        checks.ranges(ask)
        runs = []
        for index, name in enumerate(names):
            content = _content(profile, adapters[index // ask.samples])
            runs.append(draw(ask, index, name, profile, self.number(ask, index), content))
        return runs

    def says(self, path: str, body: Json, **changes: Any) -> str:
        """All that the first sample would say, if greedy, under a profile with these changes.

        A tool call says its arguments; reasoning comes first. Adapters are the loaded ones.
        """
        ask = APIS[path].read(body)
        ask.params = [{**params, "temperature": 0} for params in ask.params]
        return str(self._drawn(ask, [""], changes)[0].text)

    def close(self, job: Job, sent: bool) -> None:
        """End a job once; `sent`: the client gets, or would have got, all of its answer."""
        if job not in self.jobs:
            return
        self.jobs.remove(job)
        self.running -= len(job.runs)
        sent = sent and job.fault not in (Fault.CUT, Fault.ERROR_EVENT)
        for run in job.runs:
            if run.aborted or (job.gone.is_set() and not run.told):
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

    def pause(self, mode: str) -> None:
        """Hold new requests; abort the running ones, or let them stand still."""
        self.paused = True
        if mode == "abort":
            self.abort("", True)
        for job in self.jobs:
            job.freeze(mode != "abort")

    def proceed(self) -> None:
        """End a pause."""
        self.paused = False
        for job in self.jobs:
            job.freeze(False)
        for rest in self.resting:
            if not rest.done():
                rest.set_result(None)


def _content(profile: Profile, adapter: str) -> str:
    """What else than seed, model and prompt decides what is said; nothing if all is usual."""
    found = {name: getattr(profile, name) for name in CONTENT}
    other = {name: v for name, v in found.items() if v != getattr(DEFAULT_PROFILE, name)}
    return f"|{other}|{adapter}" if other or adapter else ""
