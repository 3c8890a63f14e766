"""Equal calls of a run come together."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang_cached_addon.service.gathering import Gathering
from tests.dialects import test_messages_stream as messages
from tests.dialects.test_messages_answer import GOOD
from tests.service.stage import GENERATE, Got, Stage, standing
from tests.upstream.scripted import run, settled


def draw(stage: Stage, name: str, n: int = 1, text: str = "q") -> asyncio.Task[Got]:
    body: Any = {"text": text, "sampling_params": {"n": n}}
    return stage.ask(GENERATE, body, x_cache_run=name)


async def sent(stage: Stage, tasks: list[asyncio.Task[Got]]) -> list[int]:
    """The `n` of each call to upstream, until all clients have their answers."""
    found = []
    while not all(task.done() for task in tasks):
        asked = asyncio.ensure_future(stage.asked())
        await asyncio.wait([asked, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            found.append(asked.result().json["sampling_params"]["n"])
            stage.generated(asked.result())
        else:
            asked.cancel()
        await settled()
    return found


def test_how_many() -> None:
    """One call asks for what all want, but for no more than so many; another run's calls are given
    the same samples, and calls of no run the first ones."""

    async def test() -> None:
        for most, names, wanted in (
            (64, "aaaa", [4]),
            (3, "aaaa", [3, 1]),
            (1, "aaa", [1, 1, 1]),
            (64, "aab", [2]),
            (64, "aabbb", [2, 1]),
        ):
            async with standing(gathering=Gathering(0.02, most)) as stage:
                tasks = [draw(stage, name) for name in names]
                assert await sent(stage, tasks) == wanted, (most, names)
                for name in set(names):
                    pairs = zip(names, tasks, strict=True)
                    texts = [(await task).texts[0] for each, task in pairs if each == name]
                    assert len(set(texts)) == len(texts), (most, names)

    run(test)


def test_without_a_window() -> None:
    """Calls that already wait for a fetch are fetched for together, also without a window."""

    async def test() -> None:
        async with standing(gathering=Gathering(0.0)) as stage:
            first = draw(stage, "a")
            asked = await stage.asked()
            tasks = [draw(stage, "a") for _ in range(5)]
            await settled()
            stage.generated(asked)
            assert await sent(stage, [first, *tasks]) == [5]

    run(test)


def test_an_api_without_n() -> None:
    """Calls of a run at an API that has no `n` each go upstream, all at once, and each has a sample
    of its own."""

    async def test() -> None:
        for form in ({}, {"stream": True}):
            async with standing(gathering=Gathering(0.02)) as stage:
                tasks = [
                    stage.ask("/v1/messages", {**messages.ASKED, **form}, x_cache_run="a")
                    for _ in range(3)
                ]
                all_asked = [await stage.asked() for _ in tasks]
                for k, asked in enumerate(all_asked):
                    assert asked.json == {**messages.ASKED, **form}
                    if not form:
                        asked.answer(200, {**GOOD, "id": f"msg_{k}"})
                        continue
                    asked.begin()
                    for event in messages.said(messages.text(0, f"{k}")):
                        asked.send(messages.named(event))
                    asked.end()
                assert len({(await task).body for task in tasks}) == 3
                await stage.settled()
                again = [stage.ask("/v1/messages", messages.ASKED, x_cache_run="b") for _ in tasks]
                assert len({(await task).body for task in again}) == 3
                assert stage.is_quiet

    run(test)
