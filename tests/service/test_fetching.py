"""What becomes of what upstream answers, against a server whose every answer the test gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

import pytest

from sglang_cached_addon.core import planning
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service import fetching
from sglang_cached_addon.store.memory import MemoryStore
from tests.service.stage import Stage, briefs, changed, staged, standing
from tests.tables import each
from tests.upstream.scripted import INFO, bounded, settled, until


@each(
    ("said", "reason"),
    [
        ((200, {**INFO, "weight_version": "2"}), Reason.MODEL_CHANGED),
        ((500, {}), Reason.UNCONFIRMED),
        ((200, b"?"), Reason.MODEL_CHANGED),
    ],
)
@staged()
async def test_another_model(stage: Stage, said: tuple[int, Any], reason: Reason) -> None:
    """An answer that was under way while the model changed, or that upstream does not confirm, is
    not stored."""
    leader, asked = await stage.lead("a")
    await settled()
    stage.script.says["/model_info"] = said
    stage.generated(asked)
    assert (await leader).brief == "miss 200"
    await until(lambda: stage.counters.not_stored)
    assert stage.stored == 0
    assert stage.counters.not_stored == {reason: 1}


@staged()
async def test_change_by_request(stage: Stage) -> None:
    """An update of the weights that passes through ends what was under way for all who come
    later."""
    old, asked = await stage.lead("a")
    await changed(stage)
    new, again = await stage.lead("a")
    stage.generated(asked)
    stage.generated(again)
    assert await briefs(old, new) == ["miss 200", "miss 200"]
    await stage.settled()
    assert stage.stored == 1
    assert (await stage.generate("a")).texts == (await new).texts


@staged()
async def test_a_long_list(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long answer is read and stored in pieces, and is there as a whole, and once, meanwhile."""
    monkeypatch.setattr(fetching.slices, "LARGE", 1000)
    monkeypatch.setattr(fetching, "STORE_SECONDS", -1.0)
    texts = [f"t{i}" for i in range(50)]
    leader, asked = await stage.lead(texts)
    others = [stage.generate(texts), stage.generate(texts[7], 2)]
    await stage.waiting(2)
    stage.generated(asked)
    more = await stage.asked()
    assert more.json["sampling_params"]["n"] == 1
    stage.generated(more)
    assert await briefs(leader, *others) == ["miss 200", "collapsed 200", "partial 200"]
    assert (await leader).texts == (await others[0]).texts
    assert (await others[1]).texts[0] == (await leader).texts[7]
    await stage.settled()
    await until(lambda: stage.stored == 51)


@staged()
async def test_an_answer_without_end(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept no further than to a bound, and then left to upstream by all who want it."""
    monkeypatch.setattr(fetching, "MAX_ANSWER", 1 << 20)
    leader, asked = await stage.lead("a")
    follower = stage.generate("a")
    await stage.waiting(1)
    asked.begin()
    for _ in range(3):
        asked.send(b" " * (1 << 19))
    assert await briefs(leader, follower) == ["bypass 200 too-large"] * 2
    await until(lambda: asked.is_left)


class Slow(MemoryStore):
    """A store that takes long for each addition, and wants what comes next to wait for a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.has_some, self.may_go_on = asyncio.Event(), asyncio.Event()

    def append(self, addition: Addition) -> bool:
        begun = time.monotonic()
        while time.monotonic() < begun + fetching.STORE_SECONDS:
            pass
        self.has_some.set()
        return super().append(addition)

    def room(self) -> Awaitable[Any] | None:
        if self.may_go_on.is_set():
            return None
        return asyncio.ensure_future(self.may_go_on.wait())


@bounded
async def test_half_stored() -> None:
    """While samples are stored one by one, each is there once."""
    store = Slow()
    async with standing(store=store) as stage:
        prompt = "x" * planning.PIECE
        first, asked = await stage.lead(prompt, n=3)
        stage.generated(asked)
        texts = (await first).texts
        await store.has_some.wait()
        assert store.samples == 1
        again = stage.generate(prompt, n=3)
        more = stage.generate(prompt, n=4)
        assert (await again).texts == texts
        asked = await stage.asked()
        assert asked.json["sampling_params"]["n"] == 1
        stage.generated(asked)
        assert len(set((await more).texts)) == 4
        store.may_go_on.set()
        await stage.settled()
        assert stage.stored == 4
