"""What becomes of what upstream answers, against a server whose every answer the test gives."""

from __future__ import annotations

import pytest

from sglang_cached_addon.service import fetching, slices, storing
from tests.service.stage import Stage, briefs, changed, staged
from tests.upstream.scripted import until


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
    monkeypatch.setattr(slices, "LARGE", 1000)
    monkeypatch.setattr(storing, "STORE_SECONDS", -1.0)
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
