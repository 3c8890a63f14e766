"""Streams that are begun, read along, cut and left, against a server that the test plays."""

from __future__ import annotations

import asyncio

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.asking import Streamed
from tests.service.stage import (
    COMPLETIONS,
    COUNTED,
    DONE,
    STREAM,
    WHOLE,
    Stage,
    begun,
    briefs,
    chunk,
    finish,
    staged,
)
from tests.tables import each
from tests.upstream.scripted import (
    settled,
    until,
)


@staged()
async def test_stream(stage: Stage) -> None:
    """Followers would miss what came before them, see others' usage, or have it generated."""
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


@staged()
async def test_stream_waits_for_json(stage: Stage) -> None:
    """A stream would have generated what a JSON call is about to bring."""
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


@each("form", ["stream", "json"])
@staged()
async def test_stream_that_is_cut(stage: Stage, form: str) -> None:
    """A stream that breaks off would hang, or be taken for whole."""
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


@each("status", [200, 400, 503])
@staged()
async def test_not_a_stream(stage: Stage, status: int) -> None:
    """What is no stream would be waited for as one."""
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


@staged()
async def test_slow_leader(stage: Stage) -> None:
    """One who does not read would keep the others waiting, or upstream."""
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


@each("first", ["leader", "follower"])
@staged()
async def test_leaving_a_stream(stage: Stage, first: str) -> None:
    """A stream would end with its first reader, or go on without any."""
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


@each("who", ["leader", "follower"])
@staged()
async def test_closed_behind_the_terminator(stage: Stage, who: str) -> None:
    """A client that hangs up with the last event in hand would be said to have left before."""
    answers = []
    for _ in range(2):
        receiving = asyncio.ensure_future(stage.receive(stage.make(COMPLETIONS, STREAM, {})))
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


@staged()
async def test_without_chunks(stage: Stage) -> None:
    """A client of HTTP/1.0 would get chunks that it cannot read."""
    got = await stage.serve(stage.make(COMPLETIONS, STREAM, {}, is_chunkable=False))
    assert got.brief == "bypass 200 http-1.0"
