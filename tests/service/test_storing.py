"""What of upstream's answers is stored, and when, against a server that says what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from sglang_cached_addon.core import planning
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service import storing
from sglang_cached_addon.store.memory import MemoryStore
from tests.service.stage import Stage, staged, standing
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


class Slow(MemoryStore):
    """A store that takes long for each addition, and wants what comes next to wait for a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.has_some, self.may_go_on = asyncio.Event(), asyncio.Event()

    def append(self, addition: Addition) -> bool:
        begun = time.monotonic()
        while time.monotonic() < begun + storing.STORE_SECONDS:
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
