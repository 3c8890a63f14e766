"""Who asks upstream and who waits for whom, against a server whose every answer the test gives."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from sglang_cached_addon import dialects
from sglang_cached_addon.core import policy
from sglang_cached_addon.core.cache import Brought, Sample
from sglang_cached_addon.core.identity import UNKNOWN
from sglang_cached_addon.core.policy import Mode, Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.service import Service
from sglang_cached_addon.service.asking import Ask, Reply, Streamed
from sglang_cached_addon.service.exchange import Bypass, Exchange, Hit, Known, Request
from sglang_cached_addon.service.stream import Cut
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.upstream import State, Upstream
from tests.upstream.scripted import (
    INFO,
    PROBE,
    Asked,
    Kept,
    Script,
    asker,
    credential,
    run,
    serving,
    settled,
    until,
)

GENERATE, COMPLETIONS = "/generate", "/v1/completions"


@dataclass
class Got:
    """An answer, as a client has it."""

    kind: str
    status: int = 200
    reason: Reason | None = None
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list)
    is_cut: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def texts(self) -> list[str]:
        natives = self.json if isinstance(self.json, list) else [self.json]
        return [native["text"] for native in natives]

    @property
    def brief(self) -> str:
        reason = f" {self.reason}" if self.reason else ""
        return f"{self.kind} {self.status}{reason}"


class Stage:
    """A service, and what is before and behind it."""

    def __init__(
        self, script: Script, store: Any = None, kept: Kept | None = None, **kwargs: Any
    ) -> None:
        ids = itertools.count(1)
        self.script = script
        self.kept = kept or Kept()
        self.store = Memory() if store is None else store
        self.exchange = Exchange(dialects.installed(), self.store, lambda: f"{next(ids):032x}")
        self.upstream = Upstream(
            script.url,
            self.kept,
            is_offline=kwargs.get("mode") is Mode.OFFLINE,
            probes=lambda asker: (PROBE,),
            entered=lambda upstream: self.exchange.enter(
                upstream.fingerprint,
                upstream.epochs,
                upstream.identity.server if upstream.identity else UNKNOWN,
                upstream.model_version,
            ),
        )
        self.service = Service(self.exchange, self.upstream, **kwargs)
        self.counters = self.exchange.counters
        self.tasks: list[asyncio.Task[Any]] = []
        self._numbers = itertools.count(1)

    async def settled(self) -> None:
        """Returns when what was answered is stored, or will not be."""
        await until(lambda: not self.service.flights.unconfirmed)

    # Clients

    def make(self, path: str, body: Any, headers: dict[str, str], **kwargs: Any) -> Ask:
        fields = {"content-type": "application/json", **headers}
        raw = {name.encode(): value.encode() for name, value in fields.items()}
        request = Request("POST", path, raw, json.dumps(body).encode())
        return Ask(request, tuple(raw.items()), **kwargs)

    async def receive(self, ask: Ask) -> Any:
        answer = self.service.receive(ask)
        return await answer if isinstance(answer, Coroutine) else answer

    async def serve(self, ask: Ask) -> Got:
        """The whole way of a call."""
        answer = await self.receive(ask)
        outcome = answer.outcome
        if isinstance(answer, Bypass):
            return Got("bypass", reason=outcome.reason)
        if isinstance(answer, Hit):
            return Got(outcome.kind, body=answer.body)
        if isinstance(answer, Reply):
            return Got(outcome.kind, answer.status, outcome.reason, answer.body)
        return await self.read(answer)

    async def read(self, answer: Streamed) -> Got:
        pieces, is_cut, is_whole = [], False, False
        try:
            async for some in answer.pieces:
                pieces += some
            is_whole = True
        except Cut:
            is_cut = True
        finally:
            answer.close(is_whole)
        outcome = answer.outcome
        body = b"".join(pieces)
        return Got(outcome.kind, 200, outcome.reason, body, pieces, is_cut)

    def ask(self, path: str, body: Any, key: str = "", **headers: str) -> asyncio.Task[Got]:
        """A client that waits for his answer."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            headers["authorization"] = key
        task = asyncio.ensure_future(self.serve(self.make(path, body, headers)))
        self.tasks.append(task)
        return task

    def generate(self, text: Any, n: int = 1, key: str = "", **more: Any) -> asyncio.Task[Got]:
        body = {"text": text, "sampling_params": {"n": n}, **more}
        return self.ask(GENERATE, body, key)

    async def lead(self, *args: Any, **kwargs: Any) -> tuple[asyncio.Task[Got], Asked]:
        """A client whose call has come to upstream, and that call."""
        task = self.generate(*args, **kwargs)
        return task, await self.asked()

    # Upstream

    async def asked(self) -> Asked:
        """The next call that comes to upstream."""
        return await self.script.calls.get()

    @property
    def is_quiet(self) -> bool:
        return self.script.calls.empty()

    def generated(self, asked: Asked, version: str = "1", end: str | None = "stop") -> None:
        """Answers with samples whose texts are numbered."""
        body = asked.json
        batched = isinstance(body["text"], list)
        prompts = body["text"] if batched else [body["text"]]
        n = body["sampling_params"].get("n", 1)
        rids = body.get("rid", "r")
        natives = [
            {
                "text": f"{prompt} {next(self._numbers)}",
                "output_ids": [1],
                "meta_info": {
                    "id": rids[i // n] if isinstance(rids, list) else rids,
                    "finish_reason": {"type": end},
                    "prompt_tokens": 1,
                    "completion_tokens": 1,
                    "weight_version": version,
                },
            }
            for i, prompt in enumerate(p for p in prompts for _ in range(n))
        ]
        asked.answer(200, natives if batched or n > 1 else natives[0])

    async def waiting(self, count: int) -> None:
        await until(lambda: self.service.flights.waiting == count)

    @property
    def stored(self) -> int:
        return self.store.samples


@asynccontextmanager
async def standing(
    keys: set[str] | None = None, says: dict[str, Any] | None = None, **kwargs: Any
) -> AsyncIterator[Stage]:
    more = {} if says is None else {"says": says}
    async with serving(keys=keys, **more) as script:
        stage = Stage(script, **kwargs)
        try:
            yield stage
            await asyncio.gather(*stage.tasks, return_exceptions=True)
            await until(lambda: not len(stage.service.flights))
            assert stage.service.flights.waiting == 0
            assert not stage.service.aborts._named
        finally:
            for task in stage.tasks:
                task.cancel()
            for flight in stage.service.flights:
                if flight.task:
                    flight.task.cancel()
            await settled()
            stage.upstream.close()
            await settled()


async def briefs(*tasks: asyncio.Task[Got]) -> list[str]:
    return [got.brief for got in await asyncio.gather(*tasks)]


# One call


def test_one_call() -> None:
    """Each of equal calls would be generated for itself."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await stage.lead("a")
            others = [stage.generate("a") for _ in range(9)]
            await stage.waiting(9)
            stage.generated(asked)
            assert await briefs(leader, *others) == ["miss 200", *["collapsed 200"] * 9]
            assert {(await other).body for other in others} == {(await leader).body}
            assert stage.is_quiet
            counters = stage.counters
            assert (counters.misses, counters.hits, counters.collapsed) == (1, 9, 9)
            assert (counters.samples_from_upstream, counters.samples_from_cache) == (1, 9)
            assert await briefs(stage.generate("a")) == ["hit 200"]

    run(test)


@pytest.mark.parametrize("bound", [4, 5])
def test_large(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is put together beside the event loop would be another, or not be counted."""
    monkeypatch.setattr(policy, "LARGE_SAMPLES", bound)

    async def test() -> None:
        async with standing() as stage:
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
            assert (counters.misses, counters.hits, counters.collapsed) == (1, 3, 1)
            assert counters.samples_from_cache == 12

    run(test)


@pytest.mark.parametrize("sizes", [(2, 4, 3, 2), (1, 5, 5, 1), (3, 1, 2, 3), (2, 3, 7, 4)])
def test_most_first(sizes: tuple[int, ...]) -> None:
    """Of those who lack different numbers of samples, each would ask for himself."""

    async def test() -> None:
        async with standing() as stage:
            first, asked = await stage.lead("a")
            stage.generated(asked)
            await first
            await stage.settled()
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

    run(test)


def test_batches() -> None:
    """What one batch brings, another would have generated again; or both wait for ever."""

    async def test() -> None:
        async with standing() as stage:
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

    run(test)


def test_prefix_of_a_batch() -> None:
    """Samples that are fetched at the same time would be given twice in one answer."""

    async def test() -> None:
        async with standing() as stage:
            alone, one = await stage.lead("a")
            batch = stage.generate(["a", "a", "x"])
            two = await stage.asked()
            assert two.json["text"] == ["x"]
            stage.generated(one)
            stage.generated(two)
            three = await stage.asked()
            stage.generated(three)
            texts = (await batch).texts
            assert texts[0] == (await alone).texts[0]
            assert len(set(texts)) == 3

    run(test)


def test_late() -> None:
    """Who comes after the answer would wait for it to be stored, or ask again."""

    async def test() -> None:
        async with standing() as stage:
            first, asked = await stage.lead("a")
            await settled()
            stage.script.may_answer.clear()
            stage.generated(asked)
            assert (await first).brief == "miss 200"
            assert stage.stored == 0
            looking = asyncio.ensure_future(stage.settled())
            for form in ({}, {"stream": True}):
                assert await briefs(stage.generate("a", **form)) == ["hit 200"]
            assert stage.stored == 0
            assert not looking.done()
            stage.script.may_answer.set()
            await looking
            await until(lambda: stage.stored == 1)
            assert await briefs(stage.generate("a")) == ["hit 200"]
            assert stage.counters.collapsed == 0
            assert stage.is_quiet

    run(test)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_before_it_is_stored(form: dict[str, bool]) -> None:
    """Who waits for a fetch would also wait until upstream says that it is the same model."""

    async def test() -> None:
        async with standing() as stage:
            first, asked = await stage.lead("a")
            others = [stage.generate("a", **form) for _ in range(3)]
            await stage.waiting(3)
            stage.script.may_answer.clear()
            stage.generated(asked)
            assert await briefs(first, *others) == ["miss 200", *["collapsed 200"] * 3]
            assert stage.stored == 0
            stage.script.may_answer.set()

    run(test)


@pytest.mark.parametrize("case", ["--no-collapse", "max-age"])
def test_repeated(case: str) -> None:
    """Who has an answer and asks the same again at once would have it generated again."""
    body = {"text": "a", "sampling_params": {"n": 1}}
    headers = {"cache_control": "max-age=1000"} if case == "max-age" else {}

    async def test() -> None:
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

    run(test)


# When something goes wrong


SHARED = [429, 500, 503]


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
@pytest.mark.parametrize("status", [400, *SHARED])
def test_refused(status: int, form: dict[str, bool]) -> None:
    """Of twelve who wait for what fails, the last would wait twelve times as long; or one would get
    what is only said to another."""

    async def test() -> None:
        async with standing() as stage:
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
            assert stage.counters.misses == 14

    run(test)


@pytest.mark.parametrize("status", [401, 403, 429, 503])
def test_credentials(status: int) -> None:
    """One whose key was taken back would have all others refused, or be let in by theirs."""

    async def test() -> None:
        async with standing(keys={"a", "b"}) as stage:
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

    run(test)


LASTING: dict[str, tuple[Callable[[Stage, Asked], None], Reason]] = {
    "not JSON": (lambda stage, asked: asked.answer(200, b"not json"), Reason.UNREADABLE),
    "an error": (lambda stage, asked: asked.answer(200, {"error": "x"}), Reason.ERROR),
    "too few": (lambda stage, asked: asked.answer(200, []), Reason.UNREADABLE),
    "other weights": (lambda stage, asked: stage.generated(asked, "2"), Reason.OTHER_WEIGHTS),
    "no end": (lambda stage, asked: stage.generated(asked, end=None), Reason.UNFINISHED),
}


@pytest.mark.parametrize("case", LASTING)
def test_never_stored(case: str) -> None:
    """Where nothing can be shared, a hundred clients would wait for a hundred generations."""
    say, reason = LASTING[case]

    async def test() -> None:
        async with standing() as stage:
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

    run(test)


def test_aborted_for_one() -> None:
    """Who waits for what somebody aborts would wait for one after the other, or be aborted."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await stage.lead("a")
            others = [stage.generate("a") for _ in range(5)]
            await stage.waiting(5)
            stage.generated(asked, end="abort")
            calls = [await stage.asked() for _ in others]
            for asked in calls:
                stage.generated(asked)
            assert await briefs(leader) == ["miss 200 abort"]
            assert set(await briefs(*others)) == {"miss 200"}

    run(test)


@pytest.mark.parametrize("what", ["hang up", "cut", "gone"])
def test_no_answer(what: str) -> None:
    """Who waits for an answer that is never given would wait for ever, or for the next failure."""

    async def test() -> None:
        async with standing() as stage:
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
                assert stage.upstream.state is State.DOWN

    run(test)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_unreachable(form: dict[str, bool]) -> None:
    """Each of those who wait for a connection would wait for one of his own."""

    async def test() -> None:
        async with standing(store=Far()) as stage:
            others = [stage.generate("a", n, **form) for n in (1, 1, 1, 2)]
            look = await stage.store.looks.get()
            await stage.waiting(3)
            stage.script.stop()
            look.answer.set_result(Brought())
            found = await briefs(*others)
            assert found == ["miss 502 unreachable", *["collapsed 502 unreachable"] * 3]

    run(test)


def test_leaving() -> None:
    """A fetch would end with its first client, or go on without any."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await stage.lead("a")
            others = [stage.generate("a") for _ in range(3)]
            await stage.waiting(3)
            leader.cancel()
            others[0].cancel()
            await stage.waiting(1)
            assert not asked.is_left
            stage.generated(asked)
            assert await briefs(*others[1:]) == ["collapsed 200"] * 2
            leader, asked = await stage.lead("b")
            other = stage.generate("b")
            await stage.waiting(1)
            other.cancel()
            leader.cancel()
            await until(lambda: asked.is_left)
            assert stage.stored == 1
            leader, asked = await stage.lead("b")
            stage.generated(asked)
            assert await briefs(leader) == ["miss 200"]

    run(test)


# One answer is of one model


@pytest.mark.parametrize("is_first", [True, False])
def test_a_part_that_others_fetch(is_first: bool) -> None:
    """What comes while a list fetches the rest would be generated again."""

    async def test() -> None:
        async with standing() as stage:
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

    run(test)


async def changed(stage: Stage) -> None:
    """An update passes through."""
    update = stage.upstream.change(Change.MODEL, None)
    await update.announced
    update.sent()
    update.ended(200)
    await until(lambda: not stage.kept.document["unsettled"])


@pytest.mark.parametrize("what", ["waited for", "stored"])
def test_parts_of_two_models(what: str) -> None:
    """One answer would hold what two models have generated."""

    async def test() -> None:
        async with standing() as stage:
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

    run(test)


def test_parts_that_are_not_confirmed() -> None:
    """What upstream is about to say of its model would come too late for an answer of parts."""

    async def test() -> None:
        async with standing() as stage:
            alone, one = await stage.lead("a")
            stage.generated(one)
            await alone
            await stage.settled()
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

    run(test)


def test_parts_that_say_that_they_are_of_another() -> None:
    """A top-up that names other weights would be put beside what is stored."""

    async def test() -> None:
        async with standing() as stage:
            alone, one = await stage.lead("a")
            stage.generated(one)
            await alone
            await stage.settled()
            more, two = await stage.lead("a", 2)
            stage.generated(two, "2")
            assert (await more).brief == "bypass 200 other-weights"

    run(test)


def test_a_model_that_does_not_stay() -> None:
    """A call would begin anew for ever."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await stage.lead("a")
            other = stage.generate("a")
            await stage.waiting(1)
            for _ in range(3):
                await changed(stage)
                _, again = await stage.lead("a")
                stage.generated(asked)
                asked = again
                await settled()
            assert await briefs(leader, other) == ["miss 200", "bypass 200 model-changed"]
            stage.generated(asked)

    run(test)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_received_anew_with_an_id(form: dict[str, bool]) -> None:
    """A call that waits while the model changes would end in a traceback."""

    async def test() -> None:
        async with standing() as stage:
            leader, one = await stage.lead("a")
            others = [stage.generate("a", rid=f"mine{i}", **form) for i in range(2)]
            await stage.waiting(2)
            await changed(stage)
            stage.generated(one)
            two = await stage.asked()
            await stage.waiting(1)
            assert stage.service.aborts.is_known("mine0")
            if form:
                two.begin()
                meta = {"id": "x", "finish_reason": {"type": "stop"}, "completion_tokens": 1}
                said = {"text": "b", "output_ids": [1], "meta_info": meta}
                two.send(b"data: %b\n\n" % json.dumps(said).encode())
                two.send(DONE)
                two.end()
                for other in others:
                    assert (await other).pieces[-1] == DONE
            else:
                stage.generated(two)
            assert await briefs(leader, *others) == ["miss 200", "miss 200", "collapsed 200"]
            assert b"mine1" in (await others[1]).body
            assert not stage.service.aborts._named

    run(test)


# Upstreams that have ways of their own


@pytest.mark.parametrize("status", [200, 400, 422])
def test_ignored_n(status: int) -> None:
    """An upstream that does not do what a part of the answer needs would be an error to a client
    whose own call it answers."""

    async def test() -> None:
        async with standing() as stage:
            alone, one = await stage.lead("a")
            stage.generated(one)
            await alone
            await stage.settled()
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

    run(test)


def test_stored_is_the_word_of_all() -> None:
    """An answer of which something is not stored would be said to be stored."""

    async def test() -> None:
        async with standing() as stage:
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

    run(test)


# Who may ask, and on which terms

ALL_MODES = {
    # what a call is that is not stored, and one that is
    Mode.READWRITE: ("miss 200", "hit 200"),
    Mode.READONLY: ("miss 200 readonly", "hit 200"),
    Mode.REFRESH: ("miss 200", "miss 200"),
    Mode.OFFLINE: ("miss 504 offline", "hit 200"),
    Mode.OFF: ("bypass 200 off", "bypass 200 off"),
}


@pytest.mark.parametrize("mode", ALL_MODES)
def test_modes(mode: Mode) -> None:
    """`--mode` would not do what it says."""

    async def test() -> None:
        async with standing() as filler:
            task, asked = await filler.lead("stored")
            filler.generated(asked)
            await task
            await filler.settled()
            await until(lambda: filler.kept.document.get("identity"))
            stage = Stage(filler.script, kept=filler.kept, mode=mode)
            stage.store._pools = filler.store._pools
            stage.store._keys = filler.store._keys
            for text, brief in zip(("new", "stored"), ALL_MODES[mode], strict=True):
                task = stage.generate(text)
                if brief.startswith("miss 200"):
                    filler.generated(await filler.asked())
                assert (await task).brief == brief
                await stage.settled()
            body = json.dumps({"text": "stored", "sampling_params": {"n": 1}}).encode()
            found = stage.service.look_up("POST", GENERATE, body, b"", streams=True)
            assert (found is None) is (mode in (Mode.REFRESH, Mode.OFF))
            stage.upstream.close()

    run(test)


DIRECTIVES = {
    # of a call whose answer is stored
    "": "hit 200",
    "no-store": "bypass 200 no-store",
    "no-cache": "miss 200",
    "max-age=0": "miss 200",
    "max-age=1000": "hit 200",
    "only-if-cached": "hit 200",
    "only-if-cached, no-cache": "miss 504 only-if-cached",
    "no-store, only-if-cached": "miss 504 only-if-cached",
}


@pytest.mark.parametrize("value", DIRECTIVES)
def test_directives(value: str) -> None:
    """A client would not get what it asks for of the cache."""
    brief = DIRECTIVES[value]
    body = {"text": "a", "sampling_params": {"n": 1}}

    async def test() -> None:
        async with standing() as stage:
            task, asked = await stage.lead("a")
            stage.generated(asked)
            await task
            await stage.settled()
            task = stage.ask(GENERATE, body, cache_control=value)
            if brief == "miss 200":
                stage.generated(await stage.asked())
            assert (await task).brief == brief
            await stage.settled()
            assert stage.stored == 1
            denied = stage.ask(GENERATE, {**body, "text": "b"}, cache_control="only-if-cached")
            assert (await denied).brief == "miss 504 only-if-cached"
            assert "only-if-cached" in (await denied).json["error"]["message"]
            assert stage.is_quiet
            assert stage.counters.denied >= 1

    run(test)


@pytest.mark.parametrize("value", ["no-cache", "max-age=5", "no-store"])
def test_alone(value: str) -> None:
    """What a client wants anew it would have to wait for, or others be given what they did not
    ask for."""
    body = {"text": "a", "sampling_params": {"n": 1}}

    async def test() -> None:
        async with standing() as stage:
            leader, one = await stage.lead("a")
            fresh = stage.ask(GENERATE, body, cache_control=value)
            if value == "no-store":
                assert (await fresh).kind == "bypass"
            else:
                two = await stage.asked()
                stage.generated(two)
                assert (await fresh).brief == "miss 200"
            other = stage.generate("a")
            stage.generated(one)
            assert (await leader).brief == "miss 200"
            assert (await other).kind in ("hit", "collapsed")

    run(test)


def test_no_collapse() -> None:
    """Who wants a sample for each call could not have it."""

    async def test() -> None:
        async with standing(collapses=False) as stage:
            tasks = [stage.generate("a") for _ in range(3)]
            for asked in [await stage.asked() for _ in tasks]:
                stage.generated(asked)
            assert await briefs(*tasks) == ["miss 200"] * 3
            await stage.settled()
            assert stage.stored == 3

    run(test)


def test_tenants() -> None:
    """With a cache for each credential, one would read what another asked."""

    async def test() -> None:
        async with standing(keys={"a", "b"}, isolates=True) as stage:
            first, one = await stage.lead("x", key="a")
            second, two = await stage.lead("x", key="b")
            same = stage.generate("x", key="a")
            await stage.waiting(1)
            stage.generated(one)
            stage.generated(two)
            assert await briefs(first, second, same) == ["miss 200", "miss 200", "collapsed 200"]
            assert (await first).body != (await second).body
            assert (await same).body == (await first).body

    run(test)


def test_strangers() -> None:
    """A hit would be given to one whom upstream does not know."""

    async def test() -> None:
        async with standing(keys={"a"}) as stage:
            task, asked = await stage.lead("x", key="a")
            stranger = stage.generate("x", key="c")
            assert (await stranger).brief == "bypass 200 unauthorized"
            stage.generated(asked)
            assert (await task).brief == "miss 200"
            for key in ("c", ""):
                assert (await stage.generate("x", key=key)).brief == "bypass 200 unauthorized"
            assert (await stage.generate("x", key="a")).brief == "hit 200"
            await stage.settled()
            body = json.dumps({"text": "x", "sampling_params": {"n": 1}}).encode()
            for key, found in (("a", True), ("c", False), ("", False)):
                hit = stage.service.look_up("POST", GENERATE, body, credential(key), streams=True)
                assert bool(hit) is found

    run(test)


def test_nameless() -> None:
    """Of a server that does not say what it is, nothing may be kept."""

    async def test() -> None:
        async with standing(says={}) as stage:
            assert (await stage.generate("a")).brief == "bypass 200 no-model"

    run(test)


@pytest.mark.parametrize("is_local", [True, False])
def test_offline_says_what_is_near(is_local: bool) -> None:
    """Who misses offline would not learn why; or a stranger learn what others asked."""
    seen: list[bool] = []

    async def nearest(known: Known, with_values: bool) -> str:
        seen.append(with_values)
        return f"Near is {known.key.hex()}."

    async def test() -> None:
        async with serving() as script:
            stage = Stage(script, mode=Mode.OFFLINE, nearest=nearest)
            body = {"text": "a", "sampling_params": {}}
            got = await stage.serve(stage.make(GENERATE, body, {}, is_local=is_local))
            assert got.brief == "miss 504 offline"
            message = got.json["error"]["message"]
            assert "--mode offline" in message
            assert "Near is " in message
            assert (seen, script.connections) == ([is_local], 0)

    run(test)


# What is further away


class Lent:
    """A lease, which counts how often it is given back."""

    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


class Far(Memory):
    """A store that says what the test says when something is to be brought."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: asyncio.Queue[Look] = asyncio.Queue()

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        look = Look(dict(needs), claims)
        self.looks.put_nowait(look)
        return look.answer


@dataclass
class Look:
    needs: dict[bytes, int]
    claims: bool
    answer: asyncio.Future[Brought] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def found(self, store: Far, *texts: str, **kwargs: Any) -> None:
        """Ends it, with native answers of one pool."""
        (key,) = self.needs
        answers = [Sample(json.dumps({"text": t, "meta_info": {}}).encode(), 1.0, 2.0, 3)
                   for t in texts]  # fmt: skip
        store.append(key, "generate", b"", answers)
        self.answer.set_result(Brought(**kwargs))


def test_far_samples_answer() -> None:
    """What is stored elsewhere would be generated again."""

    async def test() -> None:
        async with standing(store=Far()) as stage:
            tasks = [stage.generate("a", 2) for _ in range(3)]
            look = await stage.store.looks.get()
            assert (list(look.needs.values()), look.claims) == ([2], True)
            await stage.waiting(2)
            look.found(stage.store, "x", "y")
            assert await briefs(*tasks) == ["hit 200", *["collapsed 200"] * 2]
            assert tasks[0].result().texts == ["x", "y"]
            assert stage.is_quiet
            assert stage.store.looks.empty()

    run(test)


def test_far_samples_are_topped_up() -> None:
    """What is still short would not be fetched, or its lease be kept for ever."""

    async def test() -> None:
        async with standing(store=Far()) as stage:
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

    run(test)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_another_proxy_fetches(form: dict[str, bool]) -> None:
    """Who waited for another proxy would take a failure there for his own."""

    async def test() -> None:
        async with standing(store=Far()) as stage:
            task = stage.generate("a", **form)
            (await stage.store.looks.get()).answer.set_result(Brought(is_shared=True))
            (await stage.store.looks.get()).found(stage.store, "x", is_shared=True)
            assert (await task).brief == "collapsed 200"
            assert stage.is_quiet

    run(test)


def test_a_lease_of_a_failure() -> None:
    """A lease would be kept by who can no longer use it."""

    async def test() -> None:
        async with standing(store=Far()) as stage:
            task, lent = stage.generate("a"), Lent()
            (await stage.store.looks.get()).answer.set_result(Brought(lease=lent))
            (await stage.asked()).answer(500, {})
            assert (await task).status == 500
            await until(lambda: lent.released == 1)

    run(test)


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
@pytest.mark.parametrize("texts", [["x"], []], ids=["there", "nowhere"])
def test_far_samples_offline(texts: list[str], form: dict[str, bool]) -> None:
    """What is stored elsewhere would be denied."""

    async def test() -> None:
        async with standing(store=Far(), mode=Mode.OFFLINE) as stage:
            task = stage.generate("a", **form)
            look = await stage.store.looks.get()
            assert not look.claims
            look.found(stage.store, *texts)
            assert (await task).brief == ("hit 200" if texts else "miss 504 offline")

    run(test)


# Streams


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"id": "i", "choices": [choice]}).encode()


USAGE = b'data: {"id":"i","choices":[],"usage":{"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = [chunk("a"), chunk("b", "stop"), USAGE, DONE]
STREAM = {"prompt": "a", "stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}


async def begun(stage: Stage, body: Any = COUNTED) -> tuple[asyncio.Task[Got], Asked]:
    task = stage.ask(COMPLETIONS, body)
    asked = await stage.asked()
    asked.begin()
    asked.send(WHOLE[0])
    return task, asked


def finish(asked: Asked) -> None:
    for event in WHOLE[1:]:
        asked.send(event)
    asked.end()


def test_stream() -> None:
    """Followers would miss what came before them, see others' usage, or have it generated."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await begun(stage)
            early = stage.ask(COMPLETIONS, STREAM)
            await stage.waiting(1)
            asked.send(WHOLE[1])
            await settled()
            late = stage.ask(COMPLETIONS, COUNTED)
            whole = stage.ask(COMPLETIONS, {"prompt": "a"})
            await stage.waiting(3)
            for event in WHOLE[2:]:
                asked.send(event)
            asked.end()
            tasks = (leader, early, late, whole)
            assert await briefs(*tasks) == ["miss 200", *["collapsed 200"] * 3]
            assert [(await t).pieces for t in tasks[:3]] == [WHOLE, [*WHOLE[:2], DONE], WHOLE]
            assert (await whole).json["choices"][0]["text"] == "ab"
            assert stage.is_quiet
            await stage.settled()
            assert (stage.stored, stage.counters.tokens_saved) == (1, 6)
            assert await briefs(stage.ask(COMPLETIONS, STREAM)) == ["hit 200"]

    run(test)


def test_stream_waits_for_json() -> None:
    """A stream would have generated what a JSON call is about to bring."""

    async def test() -> None:
        async with standing() as stage:
            leader = stage.ask(COMPLETIONS, {"prompt": "a"})
            asked = await stage.asked()
            follower = stage.ask(COMPLETIONS, STREAM)
            await stage.waiting(1)
            choice = {"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": None}
            usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
            said = {"id": "i", "object": "text_completion", "created": 1, "model": "m"}
            asked.answer(200, {**said, "choices": [choice], "usage": usage})
            assert await briefs(leader, follower) == ["miss 200", "collapsed 200"]
            assert b'"ab"' in (await follower).body
            assert stage.is_quiet

    run(test)


@pytest.mark.parametrize("form", ["stream", "json"])
def test_stream_that_is_cut(form: str) -> None:
    """A stream that breaks off would hang, or be taken for whole."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await begun(stage)
            body = STREAM if form == "stream" else {"prompt": "a"}
            follower = stage.ask(COMPLETIONS, body)
            await stage.waiting(1)
            await until(lambda: any(f.stream and f.stream.events for f in stage.service.flights))
            asked.cut()
            got = await leader
            assert (got.pieces, got.is_cut, got.reason) == (WHOLE[:1], True, Reason.CUT)
            if form == "stream":
                assert (await follower).is_cut
            else:
                assert (await follower).brief == "collapsed 502 cut"
            assert stage.stored == 0

    run(test)


@pytest.mark.parametrize("status", [200, 400, 503])
def test_not_a_stream(status: int) -> None:
    """What is no stream would be waited for as one."""

    async def test() -> None:
        async with standing() as stage:
            leader = stage.ask(COMPLETIONS, STREAM)
            asked = await stage.asked()
            others = [stage.ask(COMPLETIONS, STREAM) for _ in range(3)]
            await stage.waiting(3)
            asked.answer(status, {"said": "no"})
            # What upstream cannot do for anyone now is everybody's answer; else all go, at once.
            calls = [await stage.asked() for _ in range(0 if status == 503 else 3)]
            await settled()
            assert stage.is_quiet
            for call in calls:
                call.begin()
                call.send(WHOLE[0])
                finish(call)
            got = await leader
            assert (got.kind, got.status, got.json) == ("miss", status, {"said": "no"})
            assert got.reason is (Reason.UNREADABLE if status == 200 else Reason.STATUS)
            brief = "miss 200" if calls else "collapsed 503 status"
            assert await briefs(*others) == [brief] * 3

    run(test)


def test_slow_leader() -> None:
    """One who does not read would keep the others waiting, or upstream."""

    async def test() -> None:
        async with standing() as stage:
            ask = stage.make(COMPLETIONS, COUNTED, {})
            receiving = asyncio.ensure_future(stage.receive(ask))
            asked = await stage.asked()
            asked.begin()
            slow = await receiving
            assert isinstance(slow, Streamed)
            follower = stage.ask(COMPLETIONS, COUNTED)
            await stage.waiting(1)
            asked.send(WHOLE[0])
            finish(asked)
            assert (await follower).pieces == WHOLE
            await until(lambda: stage.stored == 1)
            got = await stage.read(slow)
            assert (got.brief, got.pieces) == ("miss 200", WHOLE)

    run(test)


@pytest.mark.parametrize("first", ["leader", "follower"])
def test_leaving_a_stream(first: str) -> None:
    """A stream would end with its first reader, or go on without any."""

    async def test() -> None:
        async with standing() as stage:
            leader, asked = await begun(stage)
            follower = stage.ask(COMPLETIONS, STREAM)
            await stage.waiting(1)
            asked.send(chunk("more"))
            await settled()
            one, other = (leader, follower) if first == "leader" else (follower, leader)
            one.cancel()
            await stage.waiting(0)
            await settled()
            assert not asked.is_left
            other.cancel()
            await until(lambda: asked.is_left)

    run(test)


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_closed_behind_the_terminator(who: str) -> None:
    """A client that hangs up with the last event in hand would be said to have left before."""

    async def test() -> None:
        async with standing() as stage:
            answers = []
            for _ in range(2):
                receiving = asyncio.ensure_future(
                    stage.receive(stage.make(COMPLETIONS, STREAM, {}))
                )
                if not answers:
                    asked = await stage.asked()
                    asked.begin()
                answers.append(await receiving)
            asked.send(WHOLE[0])
            finish(asked)
            await until(lambda: stage.stored == 1)
            for name, answer in zip(("leader", "follower"), answers, strict=True):
                async for pieces in answer.pieces:
                    if DONE in pieces and name == who:
                        break
                answer.close(name != who)
            assert [answer.outcome.reason for answer in answers] == [None, None]
            assert not stage.counters.not_stored
            assert stage.counters.collapsed == 1

    run(test)


def test_without_chunks() -> None:
    """A client of HTTP/1.0 would get chunks that it cannot read."""

    async def test() -> None:
        async with standing() as stage:
            got = await stage.serve(stage.make(COMPLETIONS, STREAM, {}, is_chunkable=False))
            assert got.brief == "bypass 200 http-1.0"

    run(test)


def test_what_goes_upstream() -> None:
    """Upstream would not know who asks, or be asked in other words."""

    async def test() -> None:
        async with standing(keys={"Bearer k"}) as stage:
            raw = b'{ "text" : "as it came" }'
            fields = ((b"Content-Type", b"application/json"), (b"Authorization", b"Bearer k"),
                      (b"X-Trace", b"1"))  # fmt: skip
            lower = {name.lower(): value for name, value in fields}
            ask = Ask(Request("POST", GENERATE, lower, raw), fields)
            task = asyncio.ensure_future(stage.serve(ask))
            asked = await stage.asked()
            assert (asked.method, asked.path, asked.body) == ("POST", GENERATE, raw)
            assert asked.headers["x-trace"] == "1"
            assert asked.headers["authorization"] == "Bearer k"
            asked.answer(429, {"wait": 1})
            assert (await task).json == {"wait": 1}

    run(test)
