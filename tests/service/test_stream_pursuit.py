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
    USAGE,
    WHOLE,
    Stage,
    begun,
    briefs,
    chunk,
    finish,
    staged,
)
from tests.tables import each
from tests.upstream.scripted import settled, until


@each("form", ["stream", "json"])
@staged()
async def test_stream_that_is_cut(stage: Stage, form: str) -> None:
    """A stream that breaks off does so for all who read it, and is an error for who wants JSON."""
    leader, asked = await begun(stage)
    follower = stage.ask(COMPLETIONS, STREAM if form == "stream" else {"prompt": "a"})
    await stage.waiting(1)
    await until(lambda: stage.seen)
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
    """What is no stream is an answer like any other to those who wait for one."""
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
    """One who does not read keeps neither the others waiting, nor upstream."""
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


@each("who", ["leader", "follower"])
@staged()
async def test_closed_behind_the_terminator(stage: Stage, who: str) -> None:
    """A client that hangs up with the last event in hand has had all of it."""
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
async def test_aborted_behind_the_terminator(stage: Stage) -> None:
    """A stream that is aborted when its client has all of it is whole, and nothing follows."""
    receiving = asyncio.ensure_future(stage.receive(stage.make(COMPLETIONS, STREAM, {})))
    asked = await stage.asked()
    asked.begin()
    leader = await receiving
    follower = await stage.receive(stage.make(COMPLETIONS, STREAM, {}))
    asked.send(WHOLE[0])
    finish(asked)
    await until(lambda: stage.stored == 1)
    given: list[bytes] = []
    async for pieces in follower.pieces:
        given += pieces
        if DONE in pieces:
            stage.service.aborts.aborting(None)(True)
    assert given.index(DONE) == len(given) - 1
    follower.close(True)
    assert follower.outcome.reason is None
    leader.close(False)


class Outlet:
    """A client that is written to at once; `fails` breaks the next writing."""

    def __init__(self) -> None:
        self.is_full = self.fails = False
        self.events: list[bytes] = []

    def write_events(self, events: list[bytes]) -> None:
        if self.fails:
            raise ValueError("broken")
        self.events += events


@staged()
async def test_events_written_at_once(stage: Stage) -> None:
    """Each client is given each event once, in their order: at once while it has room, else by its
    task. One that cannot be written to is cut off, and no other is."""
    outlets, reading = [Outlet(), Outlet()], []
    for outlet in outlets:
        ask = stage.make(COMPLETIONS, STREAM, {})
        ask.outlet = outlet
        receiving = asyncio.ensure_future(stage.receive(ask))
        if not reading:
            asked = await stage.asked()
            asked.begin()
        reading.append(asyncio.ensure_future(stage.read(await receiving)))
    await settled()
    good, bad = outlets
    asked.send(chunk("a"))
    await until(lambda: good.events and bad.events)
    good.is_full = bad.fails = True
    asked.send(chunk("b"))
    await until(lambda: stage.seen and reading[1].done())
    good.is_full = False
    await settled()
    for event in (chunk("c", "stop"), USAGE, DONE):
        asked.send(event)
    asked.end()
    got = await reading[0]
    assert (got.brief, got.pieces) == ("miss 200", [chunk("b")])
    assert good.events == [chunk("a"), chunk("c", "stop"), DONE]
    assert bad.events == [chunk("a")]
    assert (await reading[1]).is_cut
