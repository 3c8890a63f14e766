"""A stream that is fetched: its end, its parts, its size, against a server that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service import stream_fetching
from sglang_cached_addon.wire import sse
from tests.dialects import test_messages_stream as messages
from tests.service.stage import (
    COMPLETIONS,
    DONE,
    STREAM,
    WHOLE,
    Stage,
    begun,
    briefs,
    changed,
    finish,
    staged,
    stored,
)
from tests.tables import each
from tests.upstream.scripted import INFO, SECONDS, until


class Threads(ThreadPoolExecutor):
    """Notes what is done in them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.done = ""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Any:  # type: ignore[override]
        self.done += str(work)
        return super().submit(work, *args)


@each("is_large", [True, False])
@staged()
async def test_a_large_stream(
    stage: Stage, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large stream is taken apart in a thread, and comes to the same."""
    monkeypatch.setattr(stream_fetching.slices, "LARGE", 10 if is_large else 1 << 20)
    threads = Threads()
    asyncio.get_running_loop().set_default_executor(threads)
    leader, asked = await begun(stage)
    follower = stage.ask(COMPLETIONS, STREAM)
    await stage.waiting(1)
    finish(asked)
    assert await briefs(leader, follower) == ["miss 200", "collapsed 200"]
    assert (await leader).pieces == WHOLE
    assert (await follower).pieces == [*WHOLE[:2], WHOLE[-1]]  # it wants no usage
    assert await briefs(stage.ask(COMPLETIONS, STREAM)) == ["hit 200"]
    assert ("land_stream" in threads.done) == is_large


@staged()
async def test_no_end_behind_the_terminator(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the terminator nobody waits for the end of the body."""
    monkeypatch.setattr(stream_fetching, "GRACE_SECONDS", 0.1)
    leader, asked = await begun(stage)
    others = [stage.ask(COMPLETIONS, body) for body in (STREAM, {"prompt": "a"})]
    await stage.waiting(2)
    for event in WHOLE[1:]:
        asked.send(event)
    kinds = ["miss 200", *["collapsed 200"] * 2]
    assert await briefs(leader, *others) == kinds
    assert (await leader).pieces == WHOLE
    assert await briefs(stage.ask(COMPLETIONS, STREAM)) == ["hit 200"]
    await until(lambda: asked.is_left)


@each("when", ["before", "amid", "unseen"])
@staged()
async def test_parts_of_two_models(
    stage: Stage, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream does not go on with what another model says, behind what is stored of the former."""
    monkeypatch.setattr(stream_fetching, "MERGE_SECONDS", SECONDS)
    await stored(stage)
    more = stage.ask(COMPLETIONS, {**STREAM, "n": 2})
    asked = await stage.asked()
    assert asked.json["n"] == 1
    if when == "before":
        await changed(stage)
        asked.begin()
        asked = await stage.asked()
        assert asked.json["n"] == 2
        asked.answer(503, {})
        assert (await more).brief == "miss 503 status"
        return
    asked.begin()
    asked.send(WHOLE[0])
    await until(lambda: any(b'"index":1' in event for event in stage.seen))
    if when == "amid":
        await changed(stage)
    else:
        stage.script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
    finish(asked)
    got = await more
    assert got.is_cut
    assert got.reason is Reason.CUT
    assert DONE not in got.pieces


@staged()
async def test_an_event_that_is_too_long(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that is too long ends a stream whose choices have to be numbered anew."""
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    await stored(stage)
    more = stage.ask(COMPLETIONS, {**STREAM, "n": 2})
    asked = await stage.asked()
    asked.begin()
    asked.send(b"data: " + b"x" * 1000)
    got = await more
    assert got.is_cut
    assert got.reason is Reason.CUT
    assert not any(b"xxx" in piece for piece in got.pieces)


@each("ending", ["in order", "cut", "no end"])
@staged()
async def test_messages_whose_connection_breaks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A stream that does not tell an abort is stored only if its connection has ended in order, be
    it that the stream itself is whole; its client has all of it."""
    monkeypatch.setattr(stream_fetching, "GRACE_SECONDS", 0.1)
    task = stage.ask("/v1/messages", messages.STREAM)
    asked = await stage.asked()
    events = [messages.named(event) for event in messages.said(messages.text(0, "a", "b"))]
    asked.begin()
    for event in events:
        asked.send(event)
    if ending != "no end":
        await until(lambda: len(stage.seen) == len(events))
        asked.end() if ending == "in order" else asked.cut()
    got = await task
    assert got.pieces == events
    await until(lambda: not len(stage.service.flights))
    assert stage.stored == (ending == "in order")
    assert got.brief == ("miss 200" if ending == "in order" else "miss 200 cut")
    if ending == "no end":
        asked.cut()


@staged()
async def test_an_event_of_no_name_it_knows(stage: Stage) -> None:
    """A stream with an event whose name its API does not have is passed on, and not stored."""
    task = stage.ask("/v1/messages", messages.STREAM)
    asked = await stage.asked()
    asked.begin()
    events = [messages.named(event) for event in messages.said(messages.text(0, "a"))]
    events.insert(2, b'event: surprise\ndata: {"type":"surprise"}\n\n')
    for event in events:
        asked.send(event)
    asked.end()
    got = await task
    assert (got.brief, got.pieces) == ("miss 200 unreadable-answer", events)
