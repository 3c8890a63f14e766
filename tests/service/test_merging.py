"""Answers of several parts: of one model, put together as if they had come in one."""

from __future__ import annotations

import pytest

from sglang_cached_addon.core import policy
from sglang_cached_addon.service import merging
from tests.service.stage import Stage, briefs, changed, staged
from tests.tables import each
from tests.upstream.scripted import INFO, SECONDS, settled


@each("bound", [4, 5])
@staged()
async def test_large(stage: Stage, bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is put together beside the event loop is the same, and counted the same."""
    monkeypatch.setattr(policy, "LARGE_SAMPLES", bound)
    leader, asked = await stage.lead(list("abcd"))
    other = stage.generate(list("abcd"))
    await stage.waiting(1)
    stage.generated(asked)
    assert await briefs(leader, other) == ["miss 200", "collapsed 200"]
    await stage.settled()
    hits = [stage.generate(list("abcd")) for _ in range(2)]
    assert await briefs(*hits) == ["hit 200", "hit 200"]
    assert {(await each).body for each in (other, *hits)} == {(await leader).body}
    counters = stage.counters
    assert (counters.misses, counters.hits, counters.collapsed) == (1, 2, 1)
    assert counters.samples_from_cache == 12


@each("is_first", [True, False])
@staged()
async def test_a_part_that_others_fetch(stage: Stage, is_first: bool) -> None:
    """What others bring while a list fetches the rest is a part of its answer, whichever comes
    first."""
    alone, one = await stage.lead("a")
    batch, two = await stage.lead(["a", "b"])
    assert two.json["text"] == ["b"]
    stage.generated(one if is_first else two)
    await (alone if is_first else settled())
    await settled()
    stage.generated(two if is_first else one)
    assert (await batch).texts[0] == (await alone).texts[0]
    assert (await batch).brief == "partial 200"
    assert stage.is_quiet
    await stage.settled()
    assert stage.stored == 2


@each("what", ["waited for", "stored"])
@staged()
async def test_parts_of_two_models(stage: Stage, what: str) -> None:
    """Parts of two models are never one answer: all is asked for anew."""
    alone, one = await stage.lead("a")
    if what == "stored":
        stage.generated(one)
        await alone
        await stage.settled()
    batch, two = await stage.lead(["a", "b"])
    assert two.json["text"] == ["b"]
    if what == "waited for":
        stage.generated(one)
        await alone
    await changed(stage)
    stage.generated(two)
    again = await stage.asked()
    assert again.json["text"] == ["a", "b"]
    stage.generated(again)
    assert (await batch).brief == "miss 200"
    assert (await batch).texts == ["a 3", "b 4"]
    await stage.settled()
    assert await briefs(stage.generate(["a", "b"])) == ["hit 200"]


@staged()
async def test_parts_that_are_not_confirmed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of several parts waits for what upstream is about to say of its model."""
    monkeypatch.setattr(merging, "MERGE_SECONDS", SECONDS)
    await stage.stores("a")
    batch, two = await stage.lead(["a", "b"])
    await settled()
    stage.script.may_answer.clear()
    stage.script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
    stage.generated(two, "1")
    await settled()
    assert not batch.done()
    stage.script.may_answer.set()
    again = await stage.asked()
    assert again.json["text"] == ["a", "b"]
    stage.generated(again, "2")
    assert (await batch).texts == ["a 3", "b 4"]


@staged()
async def test_parts_that_say_that_they_are_of_another(stage: Stage) -> None:
    """A top-up that names other weights is not put beside what is stored: the call is left to
    upstream."""
    await stage.stores("a")
    more, two = await stage.lead("a", 2)
    stage.generated(two, "2")
    assert (await more).brief == "bypass 200 other-weights"


@staged()
async def test_stored_is_the_word_of_all(stage: Stage) -> None:
    """An answer of which something is not stored says so, whichever part it is."""
    alone, one = await stage.lead("b")
    batch, two = await stage.lead(["a", "b"])
    stage.generated(two, end="length")
    one.answer(503, {})
    await alone
    three = await stage.asked()
    stage.generated(three, end="abort")
    assert (await batch).brief == "miss 200 abort"
    alone, one = await stage.lead("d")
    batch, two = await stage.lead(["c", "d"])
    stage.generated(two, end="abort")
    one.answer(503, {})
    await alone
    stage.generated(await stage.asked())
    assert (await batch).brief == "miss 200 abort"
