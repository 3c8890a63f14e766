"""Who is ended by an abort, and with which words, against a server whose every answer the test
gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sglang_cached_addon.core.policy import Reason
from tests.dialects.test_messages_answer import GOOD
from tests.dialects.test_messages_stream import named, said, text
from tests.service.stage import Got, Stage, staged, until
from tests.tables import each
from tests.upstream.scripted import Asked, settled


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


CALL = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}


def messages(stage: Stage, form: dict[str, bool]) -> asyncio.Task[Got]:
    return stage.ask("/v1/messages", {**CALL, **form})


def say(asked: Asked, *, is_stream: bool) -> None:
    """Upstream's answer to such a call."""
    if not is_stream:
        asked.answer(200, GOOD)
        return
    asked.begin()
    for event in said(text(0, "a", "b")):
        asked.send(named(event))
    asked.end()


FORMS = each("form", [{}, {"stream": True}], ids=["json", "stream"])


@FORMS
@each(
    ("begins", "ends", "is_stored"),
    [
        ("never", "never", True), ("before", "before", True), ("before", "meanwhile", False),
        ("before", "later", False), ("meanwhile", "meanwhile", False),
        ("meanwhile", "later", False), ("later", "later", True),
    ],
)  # fmt: skip
@staged()
async def test_answers_that_do_not_tell(
    stage: Stage, begins: str, ends: str, is_stored: bool, form: dict[str, bool]
) -> None:
    """An answer of an API that shows no aborts is stored only if no request that may end calls was
    on its way to upstream while it was generated; its client gets it anyhow, and so does one who
    waits, who asks for himself."""
    over: list[Callable[[], None]] = []

    def pass_by(moment: str) -> None:
        if moment == begins:
            over.append(stage.service.aborts.passing())
        if moment == ends != "never":
            over.pop()()

    pass_by("before")
    task = messages(stage, form)
    asked = await stage.asked()
    pass_by("meanwhile")
    say(asked, is_stream=bool(form))
    got = await task
    assert got.brief == ("miss 200" if is_stored else "miss 200 abort")
    pass_by("later")
    await stage.settled()
    assert stage.stored == is_stored
    if is_stored:
        assert (await messages(stage, {})).kind == (await messages(stage, {"stream": True})).kind


@staged()
async def test_aborts_that_tell(stage: Stage) -> None:
    """An answer that says how it ended is stored, whatever passes."""
    task, asked = await stage.lead("a")
    stage.service.aborts.passing()()
    stage.generated(asked)
    assert (await task).brief == "miss 200"
    await stage.settled()
    assert stage.stored == 1


@staged()
async def test_abort_of_a_stream_that_has_begun(stage: Stage) -> None:
    """A stream of messages that is aborted for one of its clients does not begin again: what comes
    is its end."""
    mine, theirs = (messages(stage, {"stream": True}) for _ in range(2))
    asked = await stage.asked()
    await stage.waiting(1)
    events = [named(event) for event in said(text(0, "a"))]
    asked.begin()
    for event in events[:3]:
        asked.send(event)
    await until(lambda: len(stage.seen) == 6)
    stage.service.aborts.aborting(None)(True)
    for got in (await mine, await theirs):
        assert got.brief.endswith("200 abort")
        assert got.pieces[:3] == events[:3]
        assert [piece.split(b"\n")[0] for piece in got.pieces[3:]] == [
            b"event: message_delta",
            b"event: message_stop",
        ]
    asked.cut()
