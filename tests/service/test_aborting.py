"""Who is ended by an abort, and with which words, against a server whose every answer the test
gives."""

from __future__ import annotations

from sglang_cached_addon.core.policy import Reason
from tests.service.stage import Stage, staged
from tests.tables import each
from tests.upstream.scripted import settled


@staged()
async def test_targets(stage: Stage) -> None:
    """An abort ends upstream what nobody else waits for, under upstream's own ids."""
    service = stage.service
    assert not service.aborts.is_known("mine")
    task, asked = await stage.lead("a", rid="mine")
    unique = asked.json["rid"]
    assert unique != "mine"
    assert service.aborts.is_known("mine")
    assert service.aborts.targets("mine") == [unique]
    assert service.aborts.targets(unique) == []
    other = stage.generate("a", rid="theirs")
    await stage.waiting(1)
    assert service.aborts.is_known("theirs")
    assert service.aborts.targets("mine") == service.aborts.targets("theirs") == []
    stage.generated(asked)
    assert [(await t).json["meta_info"]["id"] for t in (task, other)] == ["mine", "theirs"]
    assert not service.aborts.is_known("mine")


@each("rid", ["mine", "theirs"])
@staged()
async def test_abort_of_one(stage: Stage, rid: str) -> None:
    """One who aborts is answered at once, and all others wait on."""
    mine, asked = await stage.lead("a", rid="mine")
    theirs = stage.generate("a", rid="theirs")
    third = stage.generate("a")
    await stage.waiting(2)
    stage.service.aborts.aborting(rid)(True)
    stage.service.aborts.aborting(rid)(True)
    aborted, other = (mine, theirs) if rid == "mine" else (theirs, mine)
    got = await aborted
    assert got.brief == "miss 200 abort"
    meta = got.json["meta_info"]
    assert (meta["finish_reason"]["type"], meta["id"]) == ("abort", rid)
    assert not asked.is_left
    assert not other.done()
    stage.generated(asked)
    assert (await other).json["meta_info"]["finish_reason"]["type"] == "stop"
    assert (await third).brief == "collapsed 200"
    assert stage.counters.not_stored == {Reason.ABORT: 1}


@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each("is_agreed", [True, False], ids=["agreed", "refused"])
@staged()
async def test_abort_all_that_is_overtaken(
    stage: Stage, is_agreed: bool, form: dict[str, bool]
) -> None:
    """Upstream's aborted answer may come before its word that it has aborted all. Who waited is
    then aborted, too, and nothing is generated again for nobody."""
    leader, asked = await stage.lead("a", rid="0")
    other = stage.generate("a", rid="1", **form)
    await stage.waiting(1)
    ended = stage.service.aborts.aborting(None)
    stage.generated(asked, end="abort")
    await leader
    await stage.settled()
    await settled()
    assert stage.is_quiet
    ended(is_agreed)
    if not is_agreed:
        stage.generated(await stage.asked())
    got = await other
    assert got.status == 200
    assert (b"abort" in got.body) == is_agreed
    assert not is_agreed or b"a 1" in got.body  # what there was by then
    assert stage.is_quiet
