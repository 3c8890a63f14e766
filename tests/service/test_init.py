"""Who is admitted, on what terms, and what becomes of calls that are aborted or begun anew."""

from __future__ import annotations

import asyncio
import json

from sglang_cached_addon.core.call_head import CallHeads
from sglang_cached_addon.core.policy import Mode
from sglang_cached_addon.service.asking import Ask
from tests.service.stage import (
    DONE,
    GENERATE,
    Stage,
    briefs,
    changed,
    staged,
    standing,
)
from tests.tables import each
from tests.upstream.scripted import (
    bounded,
    settled,
    until,
)

ALL_MODES = {
    # what a call is that is not stored, and one that is
    Mode.READWRITE: ("miss 200", "hit 200"),
    Mode.READONLY: ("miss 200 readonly", "hit 200"),
    Mode.REFRESH: ("miss 200", "miss 200"),
    Mode.OFFLINE: ("miss 504 offline", "hit 200"),
    Mode.OFF: ("bypass 200 off", "bypass 200 off"),
}


@each("mode", ALL_MODES)
@bounded
async def test_modes(mode: Mode) -> None:
    """`--mode` would not do what it says."""
    async with standing() as filler:
        task, asked = await filler.lead("stored")
        filler.generated(asked)
        await task
        await filler.settled()
        await until(lambda: filler.kept.document.get("identity"))
        stage = Stage(filler.script, filler.store, filler.kept, mode=mode)
        for text, brief in zip(("new", "stored"), ALL_MODES[mode], strict=True):
            task = stage.generate(text)
            if brief.startswith("miss 200"):
                filler.generated(await filler.asked())
            assert (await task).brief == brief
            await stage.settled()
        stage.upstream.close()


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


@each("value", DIRECTIVES)
@staged()
async def test_directives(stage: Stage, value: str) -> None:
    """A client would not get what it asks for of the cache."""
    brief = DIRECTIVES[value]
    body = {"text": "a", "sampling_params": {"n": 1}}
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


@staged(keys={"a", "b"}, isolates=True)
async def test_tenants(stage: Stage) -> None:
    """With a cache for each credential, one would read what another asked."""
    first, one = await stage.lead("x", key="a")
    second, two = await stage.lead("x", key="b")
    same = stage.generate("x", key="a")
    await stage.waiting(1)
    stage.generated(one)
    stage.generated(two)
    assert await briefs(first, second, same) == ["miss 200", "miss 200", "collapsed 200"]
    assert (await first).body != (await second).body
    assert (await same).body == (await first).body


@staged(keys={"a"})
async def test_strangers(stage: Stage) -> None:
    """A hit would be given to one whom upstream does not know."""
    task, asked = await stage.lead("x", key="a")
    stranger = stage.generate("x", key="c")
    assert (await stranger).brief == "bypass 200 unauthorized"
    stage.generated(asked)
    assert (await task).brief == "miss 200"
    for key in ("c", ""):
        assert (await stage.generate("x", key=key)).brief == "bypass 200 unauthorized"
    assert (await stage.generate("x", key="a")).brief == "hit 200"


@staged()
async def test_heads_that_forbid_a_hit(stage: Stage) -> None:
    """What the header fields of a call say counts, whatever its body has got before."""
    task, asked = await stage.lead("x")
    stage.generated(asked)
    await task
    body = {"text": "x", "sampling_params": {"n": 1}}
    for field, value, reason in (
        ("content-type", "text/plain", "content-type"),
        ("origin", "http://x", "cross-origin"),
        ("content-encoding", "gzip", "encoded"),
    ):
        got = await stage.serve(stage.make(GENERATE, body, {field: value}))
        assert got.brief == f"bypass 200 {reason}"
    assert (await stage.generate("x")).brief == "hit 200"
    assert stage.is_quiet


@staged(says={})
async def test_nameless(stage: Stage) -> None:
    """Of a server that does not say what it is, nothing may be kept."""
    assert (await stage.generate("a")).brief == "bypass 200 no-model"


@staged(keys={"Bearer k"})
async def test_what_goes_upstream(stage: Stage) -> None:
    """Upstream would not know who asks, or be asked in other words."""
    raw = b'{ "text" : "as it came" }'
    fields = ((b"Content-Type", b"application/json"), (b"Authorization", b"Bearer k"),
              (b"X-Trace", b"1"))  # fmt: skip
    lower = {name.lower(): value for name, value in fields}
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\n%b\r\n" % head
    ask = Ask(CallHeads().read("POST", GENERATE, lower), raw, head)
    task = asyncio.ensure_future(stage.serve(ask))
    asked = await stage.asked()
    assert (asked.method, asked.path, asked.body) == ("POST", GENERATE, raw)
    assert asked.headers["x-trace"] == "1"
    assert asked.headers["authorization"] == "Bearer k"
    asked.answer(429, {"wait": 1})
    assert (await task).json == {"wait": 1}


@staged()
async def test_aborted_for_one(stage: Stage) -> None:
    """Who waits for what somebody aborts would wait for one after the other, or be aborted."""
    leader, asked = await stage.lead("a")
    others = [stage.generate("a") for _ in range(5)]
    await stage.waiting(5)
    stage.generated(asked, end="abort")
    calls = [await stage.asked() for _ in others]
    for asked in calls:
        stage.generated(asked)
    assert await briefs(leader) == ["miss 200 abort"]
    assert set(await briefs(*others)) == {"miss 200"}


@staged()
async def test_a_model_that_does_not_stay(stage: Stage) -> None:
    """A call would begin anew for ever."""
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


@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@staged()
async def test_received_anew_with_an_id(stage: Stage, form: dict[str, bool]) -> None:
    """A call that waits while the model changes would end in a traceback."""
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


# Upstreams that have ways of their own
