"""Who is admitted, on what terms, and what becomes of calls that are aborted or begun anew."""

from __future__ import annotations

import asyncio
import json

from sglang_cached_addon.core.call_head import CallHeads
from sglang_cached_addon.service.asking import Ask
from tests.service.stage import DONE, GENERATE, Stage, briefs, changed, staged
from tests.tables import each
from tests.upstream.scripted import settled


@staged(keys={"a", "b"}, isolates=True)
async def test_tenants(stage: Stage) -> None:
    """With a cache for each credential, nobody gets what another has asked, nor waits for it."""
    first, one = await stage.lead("x", key="a")
    second, two = await stage.lead("x", key="b")
    same = stage.generate("x", key="a")
    await stage.waiting(1)
    stage.generated(one)
    stage.generated(two)
    assert await briefs(first, second, same) == ["miss 200", "miss 200", "collapsed 200"]
    assert (await first).body == (await same).body != (await second).body


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


@staged(keys={"Bearer k"})
async def test_what_goes_upstream(stage: Stage) -> None:
    """Upstream gets the client's own bytes and header fields."""
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
async def test_a_model_that_does_not_stay(stage: Stage) -> None:
    """A call that begins anew too often is left to upstream."""
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
    """A call that waits while the model changes begins anew, under the ids of its client."""
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
