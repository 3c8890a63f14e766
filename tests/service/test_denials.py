"""What a client gets that wants no upstream to be asked."""

from __future__ import annotations

from sglang_cached_addon.core.policy import Mode
from sglang_cached_addon.service.findings import Known
from tests.service.stage import GENERATE, Far, Stage, staged
from tests.tables import each
from tests.upstream.scripted import bounded, serving


@each("is_local", [True, False])
@bounded
async def test_offline_says_what_is_near(is_local: bool) -> None:
    """Who misses offline learns what is near, and only who is on this machine learns its values."""
    seen: list[bool] = []

    async def nearest(known: Known, with_values: bool) -> str:
        seen.append(with_values)
        return f"Near is {known.key.hex()}."

    async with serving() as script:
        stage = Stage(script, mode=Mode.OFFLINE, nearest=nearest)
        body = {"text": "a", "sampling_params": {}}
        got = await stage.serve(stage.make(GENERATE, body, {}, is_local=is_local))
        assert got.brief == "denied 504 offline"
        message = got.json["error"]["message"]
        assert "--mode offline" in message
        assert "Near is " in message
        assert (seen, script.connections) == ([is_local], 0)


# What is further away


@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each("texts", [["x"], []], ids=["there", "nowhere"])
@staged(store=Far, mode=Mode.OFFLINE)
async def test_far_samples_offline(stage: Stage, texts: list[str], form: dict[str, bool]) -> None:
    """Offline, what a shared store has is given, and only the rest is denied."""
    task = stage.generate("a", **form)
    look = await stage.store.looks.get()
    assert not look.claims
    look.found(stage.store, *texts)
    assert (await task).brief == ("hit 200" if texts else "denied 504 offline")
