"""Calls of runs at random, against what the contract says of them in whatever order they come.

A `World` is a server whose answers, failures and hang-ups come at random, clients that come and
leave, and one proxy or more. A `Life` is a proxy that is started anew in between, in good order or
as a crash leaves it.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.service.gathering import Gathering
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.store import run_lines
from sglang_cached_addon.store.disk import DiskStore
from sglang_cached_addon.store.run_log import RunLog
from tests.service.stage import GENERATE, Got, Stage, standing
from tests.upstream.scripted import Asked, Script, run, serving, settled, until

ANSWERED = [[kind, "200"] for kind in ("hit", "miss", "partial", "collapsed")]


class World:
    """What goes on, and what each call of a run was given."""

    def __init__(self, chance: random.Random, stages: Sequence[Stage]) -> None:
        self.chance = chance
        self.stages = stages
        self.given: dict[tuple[str, str], list[str]] = {}
        """What the calls of a run were given for a prompt."""
        self.tasks: dict[asyncio.Task[Got], tuple[str, list[str], int]] = {}
        self._waiting: list[tuple[Stage, Asked]] = []

    def ask(self) -> None:
        """A client comes."""
        chance, stage = self.chance, self.chance.choice(self.stages)
        name, n = chance.choice(("a", "b", "")), chance.randint(1, 3)
        prompts = chance.choice((["p"], ["p"], ["q"], ["p", "q"], ["q", "q"]))
        headers = {"cache-control": "no-cache"} if chance.random() < 0.1 and name else {}
        headers |= {"x-cache-run": name} if name else {}
        text = prompts if len(prompts) > 1 else prompts[0]
        body = {"text": text, "sampling_params": {"n": n}}
        task = asyncio.ensure_future(stage.serve(stage.make(GENERATE, body, headers)))
        stage.tasks.append(task)
        self.tasks[task] = name, prompts, n

    def answer(self, what: float) -> None:
        """Upstream answers one of the calls that it has, if there are any."""
        if not self._waiting:
            return
        stage, asked = self._waiting.pop(self.chance.randrange(len(self._waiting)))
        if asked.is_left or what >= 0.9:
            asked.cut()
        elif what < 0.75:
            stage.generated(asked)
        else:
            asked.answer(self.chance.choice((400, 500, 503)), {"error": "x"})

    def leave(self) -> None:
        """A client leaves."""
        if self.tasks:
            self.chance.choice(list(self.tasks)).cancel()

    def look(self) -> None:
        """Takes note of what has come to upstream, and to clients."""
        for stage in self.stages:
            while not stage.is_quiet:
                self._waiting.append((stage, stage.script.calls.get_nowait()))
        for task in [task for task in self.tasks if task.done()]:
            name, prompts, n = self.tasks.pop(task)
            if task.cancelled() or task.result().brief.split()[:2] not in ANSWERED:
                continue
            texts = task.result().texts
            assert len(texts) == len(set(texts)) == n * len(prompts)
            for k, text in enumerate(texts):
                assert text.startswith(prompts[k // n])
                if name:
                    self.given.setdefault((name, text[0]), []).append(text)

    async def restart(self) -> None:
        """A proxy is started anew, if that can be."""

    async def live(self) -> None:
        for _ in range(60):
            what = self.chance.random()
            if what < 0.4:
                self.ask()
            elif what < 0.75:
                self.answer(self.chance.random())
            elif what < 0.8:
                self.leave()
            elif what < 0.85:
                await asyncio.sleep(0.003)
            elif what < 0.87:
                await self.restart()
            await settled(self.chance.randint(0, 8))
            self.look()
        while self.tasks:
            self.answer(0.0)
            await asyncio.sleep(0.001)
            self.look()
        for stage in self.stages:
            await stage.settled()

    async def check(self) -> None:
        """No two calls of a run have a sample in common; a run that comes later has all samples,
        each once."""
        for texts in self.given.values():
            assert len(set(texts)) == len(texts)
        for prompt in "pq":
            drawn = await self._replayed(prompt)
            assert len(set(drawn)) == len(drawn)
            for name in "ab":
                assert set(self.given.get((name, prompt), ())) <= set(drawn)

    async def _replayed(self, prompt: str) -> list[str]:
        """What a new run gets of a prompt for nothing."""
        body = {"text": prompt, "sampling_params": {"n": 1}}
        drawn: list[str] = []
        for stage in itertools.cycle(self.stages):
            asking = stage.ask(GENERATE, body, x_cache_run="c", cache_control="only-if-cached")
            if (got := await asking).status == 504:
                break
            drawn += got.texts
        return drawn


class Life:
    """A proxy in a folder, from its start to its end."""

    def __init__(self, script: Script, gathering: Gathering, folder: Path) -> None:
        self.log = RunLog(folder, Fsync.NEVER)
        self.store = DiskStore(folder, Fsync.NEVER)
        self.stage = Stage(script, self.store, runs=Runs(self.log), gathering=gathering)

    @property
    def is_written(self) -> bool:
        """Whether all that was answered is on disk."""
        on_disk = taken(run_lines.read(self.log.path))
        live = taken(self.log.runs)
        return not self.store.journal.pending and on_disk == live

    async def end(self) -> None:
        """Ends it in good order. Who waits for an answer gets none."""
        await self.stage.settled()
        for task in self.stage.tasks:
            task.cancel()
        await asyncio.gather(*self.stage.tasks, return_exceptions=True)
        await until(lambda: not len(self.stage.service.flights))
        self.stage.upstream.close()
        self.log.close()
        self.store.close()
        await settled()


def taken(known: Mapping[str, Run]) -> dict[str, dict[int, list[int]]]:
    """What runs have taken of each pool, where that is something."""
    found = {name: {k: list(run.places[k]) for k in run.places} for name, run in known.items()}
    return {name: places for name, places in found.items() if places}


class Restarting(World):
    """A world whose proxy is started anew now and then."""

    def __init__(self, script: Script, seed: int, folder: Path) -> None:
        chance = random.Random(seed)
        self._begin = lambda: Life(script, Gathering(chance.choice((0.0, 0.002)), 4), self._folder)
        self._folder = folder
        self._crashes = 0
        self.life = self._begin()
        super().__init__(chance, [self.life.stage])

    async def restart(self) -> None:
        """It is where it was left, or as a crash has left it."""
        former, is_crash = self.life, self.chance.random() < 0.5
        if is_crash:
            await former.stage.settled()
            await until(lambda: former.is_written)
            self.look()  # what was delivered is on disk
            self.tasks.clear()
            self._crashes += 1
            lost = shutil.ignore_patterns("*.lock")
            copy = self._folder.parent / f"{self._crashes}"
            self._folder = shutil.copytree(self._folder, copy, ignore=lost)
        await former.end()
        self.look()
        self.life = self._begin()
        self.stages = [self.life.stage]

    async def check(self) -> None:
        """What was not delivered takes no place, unless a crash has left it so."""
        await super().check()
        for shown in await self.life.stage.service.runs.shown():
            given = [len(texts) for (name, _), texts in self.given.items() if name == shown["name"]]
            assert shown["name"] == "c" or shown["places"] - sum(given) in range(
                100 if self._crashes else 1
            )


def test_any_sequence() -> None:
    """Whatever happens, no two calls of a run are given the same sample, none is given one that is
    not stored, and none is lost."""

    async def live(seed: int) -> None:
        chance = random.Random(seed)
        async with standing(gathering=Gathering(chance.choice((0.0, 0.002)), 4)) as stage:
            world = World(chance, [stage])
            await world.live()
            await world.check()

    for seed in range(45):
        run(lambda: live(seed))  # noqa: B023


def test_restarts(tmp_path: Path) -> None:
    """The same holds over restarts and crashes, but for what a crash took from the file's end."""

    async def live(seed: int) -> None:
        folder = tmp_path / f"{seed}" / "0"
        folder.mkdir(0o700, parents=True)
        async with serving() as script:
            world = Restarting(script, seed, folder)
            try:
                await world.live()
                await world.check()
            finally:
                await world.life.end()

    for seed in range(20):
        run(lambda: live(seed))  # noqa: B023
