"""Calls of runs: which samples each gets, against a server whose every answer the test gives."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from sglang_cached_addon.service.gathering import Gathering
from tests.service.stage import COMPLETIONS, GENERATE, Got, Stage, standing
from tests.upstream.scripted import Asked, run, settled


def draw(stage: Stage, text: Any, name: str = "a", n: int = 1, **headers: str) -> asyncio.Task[Got]:
    body = {"text": text, "sampling_params": {"n": n}}
    return stage.ask(GENERATE, body, x_cache_run=name, **headers)


def test_one_after_the_other() -> None:
    """The k-th call gets the k-th sample; another run gets the same ones in the same order."""

    async def test() -> None:
        async with standing() as stage:
            texts = []
            for k in range(3):
                task = draw(stage, "q")
                stage.generated(await stage.asked())
                got = await task
                assert (got.kind, got.places) == ("miss", b"%d" % k)
                texts += got.texts
                await stage.settled()
            assert len(set(texts)) == 3
            for k in range(3):
                got = await draw(stage, "q", "b")
                assert (got.kind, got.places, got.texts) == ("hit", b"%d" % k, [texts[k]])
            found = stage.service.runs.get("a")
            assert found
            assert (found.calls, found.places.count, found.reused, found.generated) == (3, 3, 0, 3)

    run(test)


def test_together() -> None:
    """Equal calls that wait at the same moment are one call to upstream, and each gets a sample of
    its own."""

    async def test() -> None:
        for gathering in (Gathering(), Gathering(0.0)):
            async with standing(gathering=gathering) as stage:
                tasks = [draw(stage, "q") for _ in range(8)]
                sent = []
                while not all(task.done() for task in tasks):
                    asked = asyncio.ensure_future(stage.asked())
                    await asyncio.wait([asked, *tasks], return_when=asyncio.FIRST_COMPLETED)
                    if asked.done():
                        sent.append(asked.result().json["sampling_params"]["n"])
                        stage.generated(asked.result())
                    else:
                        asked.cancel()
                    await settled()
                assert sum(sent) == 8
                assert len(sent) <= 2
                answers = [task.result() for task in tasks]
                assert len({got.texts[0] for got in answers}) == 8
                assert sorted(got.places for got in answers) == [b"%d" % k for k in range(8)]
                found = stage.service.runs.get("a")
                assert found
                assert (found.places.count, found.reused, found.generated) == (8, 0, 8)
                await stage.settled()
                again = [draw(stage, "q", "b") for _ in range(8)]
                assert [(await task).kind for task in again] == ["hit"] * 8

    run(test)


async def answered(
    stage: Stage, tasks: list[asyncio.Task[Got]], answer: Callable[[Asked], object]
) -> list[Got]:
    """Has upstream answer all that comes, until all clients have their answers."""
    while not all(task.done() for task in tasks):
        asked = asyncio.ensure_future(stage.asked())
        await asyncio.wait([asked, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            answer(asked.result())
        else:
            asked.cancel()
        await settled()
    return [await task for task in tasks]


def test_a_server_that_refuses_n() -> None:
    """It is asked with a list of equal prompts, and remembered; no client sees its refusal."""

    async def test() -> None:
        async with standing(gathering=Gathering(0.02)) as stage:
            sent: list[Any] = []

            def answer(asked: Asked) -> None:
                sent.append(asked.json["text"])
                if asked.json["sampling_params"].get("n", 1) > 1:
                    asked.answer(400, {"error": {"message": "`n` must be 1"}})
                else:
                    stage.generated(asked)

            for prompt, calls in (("q", 2), ("r", 1)):
                found = await answered(stage, [draw(stage, prompt) for _ in range(4)], answer)
                assert sent[-1] == [prompt] * 4
                assert len(sent) == calls
                assert len({got.texts[0] for got in found}) == 4
                assert {got.status for got in found} == {200}
                assert sorted(got.places for got in found) == [b"0", b"1", b"2", b"3"]
                sent.clear()
                await stage.settled()

    run(test)


def test_a_server_that_ignores_n() -> None:
    """Each call goes alone, and has its own sample."""

    async def test() -> None:
        async with standing(gathering=Gathering(0.02)) as stage:
            for _ in range(2):
                tasks = [complete(stage) for _ in range(4)]
                found = await answered(stage, tasks, lambda asked: asked.answer(200, one()))
                assert {got.status for got in found} == {200}
                assert len({got.body for got in found}) == 4
                await stage.settled()
            assert sorted(got.places for got in found) == [b"4", b"5", b"6", b"7"]

    run(test)


numbers = itertools.count()


def complete(stage: Stage) -> asyncio.Task[Got]:
    return stage.ask(COMPLETIONS, {"model": "m", "prompt": "q"}, x_cache_run="a")


def one() -> Any:
    """An answer with one choice, whatever was asked for."""
    choice = {"index": 0, "text": f"{next(numbers)}", "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "x", "object": "text_completion", "created": 1, "model": "m",
            "choices": [choice], "usage": usage}  # fmt: skip


def test_errors_are_shared() -> None:
    """When the call of a group fails, each has the error as if alone, and no place is taken."""

    async def test() -> None:
        async with standing(gathering=Gathering(0.02)) as stage:
            for status in (500, 503, 429):
                tasks = [draw(stage, "q") for _ in range(4)]
                sent: list[Asked] = []

                def answer(asked: Asked) -> None:
                    sent.append(asked)  # noqa: B023
                    asked.answer(status, {"error": "x"})  # noqa: B023

                found = await answered(stage, tasks, answer)
                assert [got.status for got in found] == [status] * 4
                assert len(sent) == 1
            tasks = [draw(stage, "q") for _ in range(4)]
            found = await answered(stage, tasks, lambda asked: asked.answer(400, {"error": "bad"}))
            assert [got.status for got in found] == [400] * 4
            known = stage.service.runs.get("a")
            assert known
            assert known.places.count == 0

    run(test)


def test_who_leaves() -> None:
    """One who leaves a group frees their place only, whether they lead it or wait."""

    async def test() -> None:
        for leaver in (0, 2):
            async with standing(gathering=Gathering(0.02)) as stage:
                tasks = [draw(stage, "q") for _ in range(4)]
                asked = await stage.asked()
                tasks.pop(leaver).cancel()
                await settled()
                assert asked.json["sampling_params"]["n"] == 4
                stage.generated(asked)
                found = [await task for task in tasks]
                assert sorted(got.places for got in found) == [b"0", b"1", b"2"]
                await stage.settled()
                assert (await draw(stage, "q")).brief == "hit 200"
                assert stage.stored == 4

    run(test)


ANSWERED = [[kind, "200"] for kind in ("hit", "miss", "partial", "collapsed")]


async def any_sequence(seed: int, chance: random.Random, stages: Sequence[Stage]) -> None:
    """Clients that come and leave, and a server that answers, fails and hangs up, at random. In the
    end a new run has all samples, and those that were given are among them."""
    given: dict[tuple[str, str], list[str]] = {}
    tasks: dict[asyncio.Task[Got], tuple[str, str, int]] = {}
    waiting: list[tuple[Stage, Asked]] = []

    def answer(stage: Stage, asked: Asked, what: float) -> None:
        if asked.is_left:
            asked.cut()
        elif what < 0.75:
            stage.generated(asked)
        elif what < 0.9:
            asked.answer(chance.choice((400, 500, 503)), {"error": "x"})
        else:
            asked.cut()

    def look() -> None:
        for stage in stages:
            while not stage.is_quiet:
                waiting.append((stage, stage.script.calls.get_nowait()))
        for task in [task for task in tasks if task.done()]:
            name, prompt, n = tasks.pop(task)
            if task.cancelled() or task.result().brief.split()[:2] not in ANSWERED:
                continue
            got = task.result()
            assert len(got.texts) == n, seed
            assert len(set(got.texts)) == n, seed
            if name:
                given.setdefault((name, prompt), []).extend(got.texts)

    for _ in range(60):
        what = chance.random()
        if what < 0.4:
            name, prompt = chance.choice(("a", "b", "")), chance.choice("pq")
            n, form = chance.randint(1, 3), {"cache-control": "no-cache"}
            headers = form if chance.random() < 0.1 and name else {}
            headers |= {"x-cache-run": name} if name else {}
            body, stage = {"text": prompt, "sampling_params": {"n": n}}, chance.choice(stages)
            task = asyncio.ensure_future(stage.serve(stage.make(GENERATE, body, headers)))
            stage.tasks.append(task)
            tasks[task] = name, prompt, n
        elif what < 0.75 and waiting:
            answer(*waiting.pop(chance.randrange(len(waiting))), chance.random())
        elif what < 0.8 and tasks:
            chance.choice(list(tasks)).cancel()
        elif what < 0.85:
            await asyncio.sleep(0.003)
        await settled(chance.randint(0, 8))
        look()
    while tasks:
        while waiting:
            answer(*waiting.pop(), 0.0)
        await asyncio.sleep(0.001)
        look()
    for key, texts in given.items():
        assert len(set(texts)) == len(texts), (seed, key)
    for stage in stages:
        await stage.settled()
    for prompt in "pq":
        found = await replayed(prompt, stages)
        assert len(set(found)) == len(found), seed
        for name in "ab":
            assert set(given.get((name, prompt), ())) <= set(found), (seed, name)


async def replayed(prompt: str, stages: Sequence[Stage]) -> list[str]:
    """What a run gets of a prompt for nothing."""
    found: list[str] = []
    for stage in itertools.cycle(stages):
        got = await draw(stage, prompt, "c", cache_control="only-if-cached")
        if got.status == 504:
            return found
        found += got.texts
    raise AssertionError


def test_any_sequence() -> None:
    """Whatever happens, no two calls of a run are given the same sample, none is given one that is
    not stored, and none is lost."""

    async def test(seed: int) -> None:
        chance = random.Random(seed)
        async with standing(gathering=Gathering(chance.choice((0.0, 0.002)), 4)) as stage:
            await any_sequence(seed, chance, [stage])

    for seed in range(60):
        run(lambda: test(seed))  # noqa: B023
