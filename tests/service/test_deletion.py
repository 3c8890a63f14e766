"""Removing what is stored, wherever it is."""

from __future__ import annotations

import gc
from concurrent.futures import Future
from typing import Any

import pytest

from sglang_cached_addon.service.deletion import Deletion
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.store.contract import Unavailable
from tests.service.stage import Stage, briefs, staged


def deletion(stage: Stage) -> Deletion:
    return Deletion(stage.store, stage.exchange.lookup, stage.service.runs)


def key_of(stage: Stage) -> bytes:
    """The key of the only entry."""
    (key,) = stage.store
    assert isinstance(key, bytes)
    return key


def remembered(text: str) -> list[Any]:
    """What holds a text in memory, but for the test's own things."""
    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, list | dict | tuple) and len(o) < 1000]
    held = [m for o in found for m in (o.values() if isinstance(o, dict) else o)]
    return [m for m in held if isinstance(m, bytes | str) and str(m).find(text) >= 0]


@staged()
async def test_asked_again(stage: Stage) -> None:
    """What was deleted is a miss, and what comes then is kept."""
    assert (await stage.stores("a")).texts == ["a 1"]
    assert (await stage.generate("a")).brief == "hit 200"
    assert await deletion(stage).delete(key_of(stage), now=False) == 1
    assert stage.stored == 0
    assert (await stage.stores("a")).texts == ["a 2"]
    assert (await stage.generate("a")).texts == ["a 2"]


class NotShared:
    """A store whose server is away."""

    def __init__(self, stage: Stage) -> None:
        self.index = stage.store.index

    async def delete_everywhere(self, key: bytes) -> Future[None]:
        raise Unavailable("away")


@staged()
async def test_refused(stage: Stage) -> None:
    """Where nothing is deleted, nothing is forgotten either: what was remembered, or what runs have
    taken."""
    await stage.stores("a")
    body = {"text": "a", "sampling_params": {"n": 1}}
    assert (await stage.ask("/generate", body, x_cache_run="r")).places == b"0"
    store: Any = NotShared(stage)
    refusing = Deletion(store, stage.exchange.lookup, stage.service.runs)
    with pytest.raises(Unavailable, match="away"):
        await refusing.delete(key_of(stage), now=False)
    assert (await stage.generate("a")).brief == "hit 200"
    second = stage.ask("/generate", body, x_cache_run="r")
    stage.generated(await stage.asked())
    assert (await second).places == b"1"


@staged()
async def test_what_was_remembered(stage: Stage) -> None:
    """Nothing that was remembered of it is left in memory: neither what was asked nor answers."""
    words = "".join(reversed("sdrow terces"))
    await stage.stores(words, n=2)
    await stage.generate(words, n=2)
    await stage.generate(words)
    stage.script.asked.clear()
    stage.tasks.clear()
    await deletion(stage).delete(key_of(stage), now=True)
    lookup = stage.exchange.lookup
    assert [m for m in remembered(words) if m is not words] == []
    assert lookup.server


@staged()
async def test_a_fetch_under_way(stage: Stage) -> None:
    """What was on its way for a deleted pool reaches who waits for it, and is not stored; others
    ask anew, and what is of other pools is stored."""
    await stage.stores("a")
    leader, asked = await stage.lead("a", n=3)
    other, about_b = await stage.lead("b")
    follower = stage.generate("a", n=2)
    await stage.waiting(1)
    key = next(iter(stage.store))
    await deletion(stage).delete(key, now=False)
    late = stage.generate("a", n=2)
    await stage.waiting(2)
    stage.generated(about_b)
    assert (await other).brief == "miss 200"
    stage.generated(asked)
    assert (await leader).texts == ["a 1", "a 3", "a 4"]
    stage.generated(await stage.asked())
    assert (await follower).texts == (await late).texts == ["a 5", "a 6"]
    await stage.settled()
    assert stage.stored == 3
    assert (await stage.generate("a", n=2)).texts == ["a 5", "a 6"]
    assert (await stage.generate("b")).brief == "hit 200"
    assert await briefs(*stage.tasks)


@staged()
async def test_models(stage: Stage) -> None:
    """A clear of some models leaves what is of others."""
    await stage.stores("a")
    await stage.stores("b")
    model = next(iter(stage.store))[:8]
    clear = deletion(stage).clear
    assert await clear([b"x" * 8]) == (0, 0)
    assert await clear([model], others=True) == (0, 0)
    assert await clear([b"x" * 8, model]) == (2, 2)
    await stage.stores("a")
    assert await clear(None) == (1, 1)
    assert isinstance(stage.service.runs, Runs)


@staged()
async def test_a_call_of_a_run_that_is_cut(stage: Stage) -> None:
    """Who had a sample of a deleted pool, and did not get it, gives back no place that another call
    has meanwhile."""
    await stage.stores("a")
    run = {"x-cache-run": "r"}
    body = {"text": "a", "sampling_params": {"n": 1}}
    early = stage.make("/generate", body, run)
    assert (await stage.receive(early)).outcome.places == b"0"
    await deletion(stage).delete(key_of(stage), now=False)
    await stage.stores("a")
    late = stage.make("/generate", body, run)
    assert (await stage.receive(late)).outcome.places == b"0"
    early.settle(is_delivered=False)
    late.settle(is_delivered=True)
    third = stage.ask("/generate", body, x_cache_run="r")
    stage.generated(await stage.asked())
    got = await third
    assert (got.places, got.texts) == (b"1", ["a 3"])
