"""Leaders and followers of streams, without any upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sglang_cached_addon.dialects.base import Part
from sglang_cached_addon.inflight import Cut, Follower, State, Stream, Streams
from sglang_cached_addon.relay import Event


def delta(text: str, choice: int = 0) -> Event:
    return Event(text.encode(), Part.DELTA, choice)


def state(text: str, choice: int = 0) -> Event:
    return Event(text.encode(), Part.STATE, choice)


async def text(follower: Follower) -> str:
    """All that a follower reads, batches told apart."""
    batches = [b"".join(event.data for event in events) async for events in follower.read()]
    return b"|".join(batches).decode()


async def settled() -> None:
    """Lets every task that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


Case = Callable[[Stream], Awaitable[None]]


async def early(stream: Stream) -> None:
    """One who is there before upstream gets each event as it comes."""
    follower = Follower(stream)
    reading = asyncio.ensure_future(text(follower))
    opened = asyncio.ensure_future(follower.opened())
    await settled()
    assert not opened.done()
    stream.open()
    assert await opened
    for word in "abc":
        stream.publish([delta(word)])
        await settled()
    stream.end(complete=True)
    assert await reading == "a|b|c"


async def late(stream: Stream) -> None:
    """One who comes late gets what there is at once."""
    stream.open()
    stream.publish([delta("a"), delta("b")])
    follower = Follower(stream)
    assert await follower.opened()
    reading = asyncio.ensure_future(text(follower))
    await settled()
    stream.publish([delta("c"), delta("d")])
    stream.end(complete=True)
    assert await reading == "ab|cd"


async def after_the_end(stream: Stream) -> None:
    stream.open()
    stream.publish([delta("a")])
    follower = Follower(stream)
    stream.end(complete=True)
    assert await follower.opened()
    assert await text(follower) == "a"


async def states(stream: Stream) -> None:
    """Of events that have all so far, the newest is enough, for each choice."""
    stream.open()
    stream.publish([delta("a"), delta("x", 1), state("ab"), state("abc"), delta("xy", 1)])
    stream.publish([Event(b"!", Part.OTHER)])
    follower = Follower(stream)
    stream.publish([state("abcd")])
    stream.end(complete=True)
    assert await text(follower) == "axxy!abcd"


async def cut(stream: Stream) -> None:
    """What broke off for the leader breaks off for all, behind what came before."""
    stream.open()
    stream.publish([delta("a")])
    follower = Follower(stream)
    stream.end(complete=False)
    assert await follower.opened()
    news = follower.read()
    assert [event.data for event in await anext(news)] == [b"a"]
    with pytest.raises(Cut):
        await anext(news)


async def refused(stream: Stream) -> None:
    """A fetch that never became a stream is nothing to follow."""
    follower = Follower(stream)
    opened = asyncio.ensure_future(follower.opened())
    await settled()
    stream.end(complete=False)
    assert not await opened


async def leaving(stream: Stream) -> None:
    """One who leaves while he waits is not counted, and not waited for."""
    followers = [Follower(stream), Follower(stream)]
    waiting = [asyncio.ensure_future(follower.opened()) for follower in followers]
    unattended = asyncio.ensure_future(stream.unattended())
    await settled()
    for follower in followers:
        assert not unattended.done()
        follower.leave()
        follower.leave()
        await settled()
    assert stream.followers == 0
    assert unattended.done()
    assert [await opened for opened in waiting] == [False, False]


async def cancelled(stream: Stream) -> None:
    """One who is cancelled while he waits takes nobody with him."""
    stream.open()
    gone, other = (asyncio.ensure_future(text(Follower(stream))) for _ in range(2))
    await settled()
    gone.cancel()
    await settled()
    stream.publish([delta("a")])
    stream.end(complete=True)
    assert await other == "a"
    assert gone.cancelled()


async def attended(stream: Stream) -> None:
    """A fetch that is over is not waited for."""
    stream.open()
    Follower(stream)
    waiting = asyncio.ensure_future(stream.unattended())
    await settled()
    assert not waiting.done()
    stream.end(complete=True)
    await waiting


async def twice(stream: Stream) -> None:
    """The first end is the one that counts."""
    stream.open()
    stream.end(complete=True)
    stream.end(complete=False)
    assert stream.state is State.COMPLETE


CASES = [early, late, after_the_end, states, cut, refused, leaving, cancelled, attended, twice]


@pytest.mark.parametrize("case", CASES)
def test_stream(case: Case) -> None:
    async def run() -> None:
        await asyncio.wait_for(case(Stream()), 10)

    asyncio.run(run())


def test_streams() -> None:
    """A fetch that another has taken the place of cannot take that one's place away."""
    streams = Streams()
    assert streams.find("a") is None
    first = streams.lead("a")
    assert streams.find("a") is first
    second = streams.lead("a")
    streams.drop("a", first)
    assert streams.find("a") is second
    Follower(second)
    assert (len(streams), streams.followers) == (1, 1)
    streams.drop("a", second)
    assert (streams.find("a"), len(streams), streams.followers) == (None, 0, 0)
