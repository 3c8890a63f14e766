"""Calls of runs take what is stored, against a server whose every answer the test gives."""

from __future__ import annotations

import asyncio

from tests.service.stage import GENERATE, Got, Stage, standing
from tests.upstream.scripted import run


def draw(stage: Stage, name: str) -> asyncio.Task[Got]:
    body = {"text": "q", "sampling_params": {"n": 1}}
    return stage.ask(GENERATE, body, x_cache_run=name)


def test_one_after_the_other() -> None:
    """The k-th call gets the k-th sample; another run gets the same ones in the same order."""

    async def test() -> None:
        async with standing() as stage:
            texts = []
            for k in range(3):
                task = draw(stage, "a")
                stage.generated(await stage.asked())
                got = await task
                assert (got.kind, got.places) == ("miss", b"%d" % k)
                texts += got.texts
                await stage.settled()
            assert len(set(texts)) == 3
            for k in range(3):
                got = await draw(stage, "b")
                assert (got.kind, got.places, got.texts) == ("hit", b"%d" % k, [texts[k]])
            found = stage.service.runs.get("a")
            assert found
            assert (found.calls, found.places.count, found.reused, found.generated) == (3, 3, 0, 3)

    run(test)
