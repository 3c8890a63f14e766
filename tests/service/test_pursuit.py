"""Who asks upstream and who waits for whom, against a server whose every answer the test gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sglang_cached_addon.core.cache import Brought
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.upstream import Health
from tests.service.stage import GENERATE, Far, Lent, Stage, briefs, staged, standing
from tests.tables import each
from tests.upstream.scripted import Asked, asker, bounded, credential_headers, settled, until


@each("sizes", [(2, 4, 3, 2), (1, 5, 5, 1), (3, 1, 2, 3), (2, 3, 7, 4)])
@staged()
async def test_most_first(stage: Stage, sizes: tuple[int, ...]) -> None:
    """Of those who lack different numbers of samples, one asks for all."""
    await stage.stores("a")
    tasks = [stage.generate("a", n) for n in sizes]
    total, others = 1, [n for n in sizes if n > 1]
    asked = await stage.asked()
    lead = asked.json["sampling_params"]["n"] + total
    assert lead == others[0]
    await stage.waiting(len(others) - 1)
    stage.generated(asked)
    if max(sizes) > lead:
        asked = await stage.asked()
        assert asked.json["sampling_params"]["n"] == max(sizes) - lead
        stage.generated(asked)
    found = [(await task).texts for task in tasks]
    whole = max(found, key=len)
    assert [len(texts) for texts in found] == list(sizes)
    assert all(texts == whole[: len(texts)] for texts in found)
    assert len(set(whole)) == stage.stored == max(sizes)
    assert stage.is_quiet


@staged()
async def test_batches(stage: Stage) -> None:
    """What one batch brings is not asked for by another, and none waits for ever."""
    first, one = await stage.lead(["a", "b", "b"])
    second, two = await stage.lead(["b", "c"])
    third = stage.generate(["c", "b", "a"])
    fourth = stage.generate(["b", "b", "b"])
    await settled()
    assert (one.json["text"], two.json["text"]) == (["a", "b", "b"], ["c"])
    stage.generated(two)
    stage.generated(one)
    three = await stage.asked()
    assert three.json["text"] in (["b"], "b")
    stage.generated(three)
    a, b, b2 = (await first).texts
    assert (await second).texts[0] == b
    c = (await second).texts[1]
    assert (await third).texts == [c, b, a]
    assert (await fourth).texts[:2] == [b, b2]
    assert len({*(await fourth).texts}) == 3
    assert stage.is_quiet


@staged()
async def test_before_it_is_stored(stage: Stage) -> None:
    """Neither who waits for a fetch, nor who comes after its answer, waits until upstream says that
    it is the same model, and the samples are stored."""
    first, asked = await stage.lead("a")
    forms = ({}, {"stream": True})
    others = [stage.generate("a", **form) for form in forms]
    await stage.waiting(2)
    stage.script.may_answer.clear()
    stage.generated(asked)
    assert await briefs(first, *others) == ["miss 200", *["collapsed 200"] * 2]
    looking = asyncio.ensure_future(stage.settled())
    for form in forms:
        assert await briefs(stage.generate("a", **form)) == ["hit 200"]
    assert stage.stored == 0
    assert not looking.done()
    stage.script.may_answer.set()
    await looking
    await until(lambda: stage.stored == 1)
    assert await briefs(stage.generate("a")) == ["hit 200"]
    assert stage.is_quiet


@each("case", ["--no-collapse", "max-age"])
@bounded
async def test_repeated(case: str) -> None:
    """Who has an answer and asks the same again at once is given it again."""
    body = {"text": "a", "sampling_params": {"n": 1}}
    headers = {"cache_control": "max-age=1000"} if case == "max-age" else {}
    async with standing(collapses=case != "--no-collapse") as stage:
        first, asked = await stage.lead("a")
        await settled()
        stage.script.may_answer.clear()
        stage.generated(asked)
        assert (await first).brief == "miss 200"
        second = stage.ask(GENERATE, body, **headers)
        await settled()
        stage.script.may_answer.set()
        await until(lambda: second.done() or not stage.is_quiet)
        is_asked = not stage.is_quiet
        if is_asked:
            stage.generated(await stage.asked())
        assert (await second).brief == "hit 200"


# When something goes wrong


SHARED = [429, 500, 503]


@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each("status", [400, *SHARED])
@staged()
async def test_refused(stage: Stage, status: int, form: dict[str, bool]) -> None:
    """What upstream cannot do for anyone now is the answer of all who wait; with what it says to
    one call alone, the others go on, all at once."""
    leader, asked = await stage.lead("a", **form)
    others = [stage.generate("a", **form) for _ in range(11)]
    json_one, more = stage.generate("a"), stage.generate("a", 2)
    await stage.waiting(13)
    asked.answer(status, {"error": "no"})
    bad = f"miss {status} status"
    assert await briefs(leader) == [bad]
    calls = [await stage.asked() for _ in range(1 if status in SHARED else 13)]
    if status in SHARED:  # another call may be answered otherwise
        (call,) = calls
        assert call.json["sampling_params"]["n"] == 2
        same = list(await asyncio.gather(*others, json_one))
        assert {got.brief for got in same} == {f"collapsed {status} status"}
        assert {got.body for got in same} == {(await leader).body}
    await settled()
    assert stage.is_quiet
    for call in calls:
        call.answer(status, {"error": "again"})
    assert await briefs(more) == [bad]
    await asyncio.gather(*others, json_one)
    assert stage.counters.misses + stage.counters.collapsed == 14


@each("status", [401, 403, 429, 503])
@staged(keys={"a", "b"})
async def test_credentials(stage: Stage, status: int) -> None:
    """What upstream says to one credential is nobody else's answer, and lets nobody else in."""
    leader, asked = await stage.lead("x", key="a")
    others = [stage.generate("x", key="b") for _ in range(2)]
    await stage.waiting(2)
    asked.answer(status, {"error": "no"})
    for asked in [await stage.asked() for _ in others]:
        assert asked.headers["authorization"] == "b"
        stage.generated(asked)
    found = await briefs(leader, *others)
    assert found == [f"miss {status} status", "miss 200", "miss 200"]
    if status in (401, 403):
        assert not stage.upstream.admits(asker("a"), time.monotonic())


@staged(keys={"a", "b"})
async def test_a_credential_that_is_refused_meanwhile(stage: Stage) -> None:
    """One that waits, and that upstream refuses meanwhile, is not given what has come."""
    leader, asked = await stage.lead("x", key="a")
    other = stage.generate("x", key="b")
    await stage.waiting(1)
    stage.script.keys = {"a"}
    stage.upstream.heard(asker("b"), credential_headers("b"), 401, time.monotonic())
    stage.generated(asked)
    assert await briefs(leader, other) == ["miss 200", "bypass 200 unauthorized"]


LASTING: dict[str, tuple[Callable[[Stage, Asked], None], Reason]] = {
    "not JSON": (lambda stage, asked: asked.answer(200, b"not json"), Reason.UNREADABLE),
    "an error": (lambda stage, asked: asked.answer(200, {"error": "x"}), Reason.ERROR),
    "other weights": (lambda stage, asked: stage.generated(asked, "2"), Reason.OTHER_WEIGHTS),
    "no end": (lambda stage, asked: stage.generated(asked, end=None), Reason.UNFINISHED),
}


@each("case", LASTING)
@staged()
async def test_never_stored(stage: Stage, case: str) -> None:
    """Where nothing can be shared, all who wait go on alone, all at once."""
    say, reason = LASTING[case]
    leader, asked = await stage.lead("a", 2)
    others = [stage.generate("a", 2) for _ in range(5)]
    await stage.waiting(5)
    say(stage, asked)
    calls = [await stage.asked() for _ in others]
    assert stage.service.flights.waiting == 0
    for call in calls:
        stage.generated(call)
    assert (await leader).reason is reason
    assert set(await briefs(*others)) == {"miss 200"}


@each("what", ["hang up", "cut", "gone"])
@staged()
async def test_no_answer(stage: Stage, what: str) -> None:
    """All who wait for an answer that is never given are told so at once."""
    leader, asked = await stage.lead("a")
    others = [stage.generate("a", **form) for form in ({}, {}, {"stream": True})]
    await stage.waiting(3)
    if what == "gone":
        stage.script.stop()
    elif what == "cut":
        asked._writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\nhalf")
        await asked._writer.drain()
        asked._writer.close()
        asked.is_answered.set()
    else:
        asked.cut()
    assert await briefs(leader, *others) == ["miss 502 cut", *["collapsed 502 cut"] * 3]
    assert stage.script.url in (await others[0]).json["error"]["message"]
    assert stage.is_quiet
    if what == "gone":
        assert await briefs(stage.generate("a")) == ["miss 502 unreachable"]
        assert stage.upstream.inquiry.health is Health.DOWN


@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@staged(store=Far)
async def test_unreachable(stage: Stage, form: dict[str, bool]) -> None:
    """All who wait for a connection share its failure."""
    others = [stage.generate("a", n, **form) for n in (1, 1, 1, 2)]
    look = await stage.store.looks.get()
    await stage.waiting(3)
    stage.script.stop()
    look.answer.set_result(Brought())
    found = await briefs(*others)
    assert found == ["miss 502 unreachable", *["collapsed 502 unreachable"] * 3]


@each("status", [200, 400, 422])
@staged()
async def test_ignored_n(stage: Stage, status: int) -> None:
    """Where upstream does not understand calls for a part, the clients' own calls are left to
    it."""
    await stage.stores("a")
    for number in range(3):
        more = stage.generate("a", 3)
        if number < 2:
            asked = await stage.asked()
            assert asked.json["sampling_params"]["n"] == 2
            asked.answer(status, {"text": "a", "meta_info": {}})
        assert (await more).brief == "bypass 200 unreadable-answer"
    assert stage.is_quiet
    two = stage.generate("b", 3)
    assert (await stage.asked()).json["sampling_params"]["n"] == 3
    two.cancel()


# Who may ask, and on which terms


@staged(store=Far)
async def test_far_samples_answer(stage: Stage) -> None:
    """What a shared store has is not generated again."""
    tasks = [stage.generate("a", 2) for _ in range(3)]
    look = await stage.store.looks.get()
    assert (list(look.needs.values()), look.claims) == ([2], True)
    await stage.waiting(2)
    look.found(stage.store, "x", "y")
    assert await briefs(*tasks) == ["hit 200", *["collapsed 200"] * 2]
    assert tasks[0].result().texts == ["x", "y"]
    assert stage.is_quiet
    assert stage.store.looks.empty()


@staged(store=Far)
async def test_far_samples_are_topped_up(stage: Stage) -> None:
    """What is still short is fetched, and each lease given back in the end."""
    task = stage.generate("a", 3)
    first, again = Lent(), Lent()
    (await stage.store.looks.get()).found(stage.store, "x", lease=first)
    look = await stage.store.looks.get()
    assert first.released == 1
    look.answer.set_result(Brought(lease=again))
    asked = await stage.asked()
    assert asked.json["sampling_params"]["n"] == 2
    assert again.released == 0
    stage.generated(asked)
    assert (await task).brief == "partial 200"
    await stage.settled()
    assert (again.released, stage.stored) == (1, 3)


@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@staged(store=Far)
async def test_another_proxy_fetches(stage: Stage, form: dict[str, bool]) -> None:
    """Who waits for another proxy looks again when that has failed."""
    task = stage.generate("a", **form)
    (await stage.store.looks.get()).answer.set_result(Brought(is_shared=True))
    (await stage.store.looks.get()).found(stage.store, "x", is_shared=True)
    assert (await task).brief == "collapsed 200"
    assert stage.is_quiet


@staged(store=Far)
async def test_a_lease_of_a_failure(stage: Stage) -> None:
    """The lease of a fetch that fails is given back."""
    task, lent = stage.generate("a"), Lent()
    (await stage.store.looks.get()).answer.set_result(Brought(lease=lent))
    (await stage.asked()).answer(500, {})
    assert (await task).status == 500
    await until(lambda: lent.released == 1)
