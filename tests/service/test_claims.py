"""Calls of runs: which samples each gets, against a server whose every answer the test gives."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

from sglang_cached_addon.service.gathering import Gathering
from tests.service.stage import COMPLETIONS, GENERATE, Got, Stage, standing
from tests.upstream.scripted import Asked, run, settled


def draw(stage: Stage, text: Any, name: str = "a", n: int = 1, **headers: str) -> asyncio.Task[Got]:
    body = {"text": text, "sampling_params": {"n": n}}
    return stage.ask(GENERATE, body, x_cache_run=name, **headers)


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
