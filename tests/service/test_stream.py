"""The events of a fetch, without any upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sglang_cached_addon.core.call import Part
from sglang_cached_addon.service import stream as module
from sglang_cached_addon.service.relay import Event
from sglang_cached_addon.service.stream import BACKLOG, Cut, Reader, Stream, StreamState
from tests.tables import each
from tests.upstream.scripted import bounded, settled


def delta(text: str, choice: int = 0) -> Event:
    return Event(text.encode(), Part.DELTA, choice)


def state(text: str, choice: int = 0) -> Event:
    return Event(text.encode(), Part.STATE, choice)


async def text(reader: Reader, is_over: Callable[[], bool] = bool) -> str:
    """All that a reader sees, batches told apart."""
    batches = [b"".join(event.data for event in news) async for news in reader.read(is_over)]
    return b"|".join(batches).decode()


Case = Callable[[Stream], Awaitable[None]]


async def superseded(stream: Stream) -> None:
    """Of events that have all so far, the newest is enough for who comes late, for each choice; who
    is there sees each, however late it looks."""
    stream.open()
    first = stream.reader()
    stream.publish([delta("a"), delta("x", 1), state("ab"), state("abc"), delta("xy", 1)])
    stream.publish([Event(b"!", Part.OTHER), state("xyz", 1), state("abcd")])
    stream.end(complete=True)
    assert await text(first) == "axababcxy!xyzabcd"
    assert await text(stream.reader()) == "axxy!xyzabcd"


async def behind(stream: Stream) -> None:
    """One who has seen some of it sees each of the others, also the very next."""
    stream.open()
    reader = stream.reader()
    reading = asyncio.ensure_future(text(reader))
    stream.publish([state("a")])
    await settled()
    assert reader.place == 1
    stream.publish([state("ab"), state("abc")])
    stream.end(complete=True)
    assert await reading == "a|ababc"


async def superseded_without_end(stream: Stream) -> None:
    """A reader that does not read does not keep everything in memory."""
    reader = stream.reader()
    stream.open()
    for number in range(10 * BACKLOG):
        stream.publish([state(f"{number} ")])
    stream.end(complete=True)
    assert sum(event is not None for event in stream.events) == BACKLOG + 1
    assert (await text(reader)).split()[-1] == str(10 * BACKLOG - 1)


async def gone_reader(stream: Stream) -> None:
    """One who has left does not keep anything for itself."""
    gone, other = stream.reader(), stream.reader()
    reading = asyncio.ensure_future(text(other))
    stream.open()
    for word in ("a", "ab"):
        stream.publish([state(word)])
        await settled()
    gone.close()
    stream.publish([state("abc")])
    assert [event is not None for event in stream.events] == [False, False, True]
    stream.end(complete=True)
    assert await reading == "a|ab|abc"


async def cut(stream: Stream) -> None:
    """What broke off breaks off for all, behind what came before."""
    stream.open()
    stream.publish([delta("a")])
    news = stream.reader().read()
    stream.end(complete=False)
    assert await stream.opened()
    assert [event.data for event in await anext(news)] == [b"a"]
    with pytest.raises(Cut):
        await anext(news)


async def refused(stream: Stream) -> None:
    """A fetch that never became a stream is nothing to read."""
    opened = asyncio.ensure_future(stream.opened())
    await settled()
    stream.end(complete=False)
    assert not await opened


async def cancelled(stream: Stream) -> None:
    """One who is cancelled while he waits takes nobody with him."""
    stream.open()
    gone, other = (asyncio.ensure_future(text(stream.reader())) for _ in range(2))
    await settled()
    gone.cancel()
    await settled()
    stream.publish([delta("a")])
    stream.end(complete=True)
    assert await other == "a"
    assert gone.cancelled()


async def taken(stream: Stream) -> None:
    """Events that come while a reader waits may be taken before it wakes: nothing of them is given
    twice or lost, nor taken for one who has left, and what comes otherwise is given as always."""
    reader, seen, has_left = stream.reader(), [], stream.reader()
    wants = True

    def takes(reader: Reader = reader) -> bool:
        if wants:
            seen.append(b"".join(event.data for event in reader.take()).decode())
        return wants

    async def read(reader: Reader) -> str:
        pieces = reader.read(takes=lambda: takes(reader))
        return b"|".join([b"".join(e.data for e in news) async for news in pieces]).decode()

    stream.open()
    stream.publish([delta("a")])
    reading, leaving = asyncio.ensure_future(read(reader)), asyncio.ensure_future(read(has_left))
    await settled()
    leaving.cancel()
    await settled()
    stream.publish([delta("b"), delta("c")])
    stream.publish([delta("d")])
    wants = False
    stream.publish([delta("e")])
    assert not reader.is_level
    wants = True
    stream.publish([delta("f")])
    await settled()
    stream.publish([delta("g")])
    stream.end(complete=True)
    assert await reading == "a|ef"
    assert reader.is_level
    assert seen == ["bc", "d", "g"]


async def over(stream: Stream) -> None:
    """One who has had enough is told so, and the others read on."""
    enough: list[int] = []
    stream.open()
    first = asyncio.ensure_future(text(stream.reader(), lambda: bool(enough)))
    other = asyncio.ensure_future(text(stream.reader()))
    stream.publish([delta("a")])
    await settled()
    enough.append(1)
    await settled()
    assert not first.done()
    stream.tell()
    assert await first == "a"
    stream.publish([delta("b")])
    stream.end(complete=True)
    assert await other == "a|b"


async def twice(stream: Stream) -> None:
    """The first end is the one that counts."""
    stream.open()
    stream.end(complete=True)
    stream.end(complete=False)
    assert stream.state is StreamState.COMPLETE
    assert not stream.is_live


CASES = [
    superseded, behind, superseded_without_end, gone_reader, cut,
    refused, cancelled, taken, over, twice,
]  # fmt: skip


@each("case", CASES)
@bounded
async def test_stream(case: Case) -> None:
    """What each case says of a stream."""
    await case(Stream())


# Readers that are behind


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that keep 100 bytes, hand out 10, and have little patience."""
    monkeypatch.setattr(module, "KEPT_BYTES", 100)
    monkeypatch.setattr(module, "BATCH_BYTES", 10)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)


def filled(stream: Stream, count: int = 20) -> None:
    """More than is to be kept: so many events of ten bytes."""
    stream.open()
    stream.publish([delta("0123456789") for _ in range(count)])


async def slow(stream: Stream) -> None:
    """Who fetches waits for the slowest, and goes on as soon as that does."""
    reader = stream.reader()
    filled(stream)
    fetching = asyncio.ensure_future(stream.room(lambda: 1))
    news = reader.read()
    for _ in range(9):
        await anext(news)
        await settled()
        assert not fetching.done()
    for _ in range(2):
        await anext(news)
        await settled()
    assert fetching.done()
    assert stream.kept <= 100
    assert not stream.is_whole


async def alone(stream: Stream) -> None:
    """Nobody else waits: a client may take as long as it wants."""
    stream.reader()
    filled(stream)
    fetching = asyncio.ensure_future(stream.room(lambda: 1))
    await asyncio.sleep(0.05)
    assert not fetching.done()
    fetching.cancel()


async def stuck(stream: Stream) -> None:
    """One who does not move is left behind by one who has seen all."""
    gone, other = stream.reader(), stream.reader()
    reading = asyncio.ensure_future(text(other))
    filled(stream)
    await settled()
    await stream.room(lambda: 2)
    with pytest.raises(Cut):
        await anext(gone.read())
    stream.publish([delta("!")])
    stream.end(complete=True)
    assert (await reading).replace("|", "") == "0123456789" * 20 + "!"


async def stuck_before_json(stream: Stream) -> None:
    """One who does not move is left behind where others wait for the end."""
    gone = stream.reader()
    filled(stream)
    await stream.room(lambda: 2)
    with pytest.raises(Cut):
        await anext(gone.read())
    assert stream.kept == 0


async def leaves(stream: Stream) -> None:
    """One who leaves is not waited for."""
    reader = stream.reader()
    filled(stream)
    fetching = asyncio.ensure_future(stream.room(lambda: 1))
    await settled()
    reader.close()
    await fetching
    assert stream.kept == 0


async def unread(stream: Stream) -> None:
    """What nobody reads is not kept, nor waited for."""
    filled(stream)
    await stream.room(lambda: 1)
    assert (stream.kept, stream.is_whole) == (0, False)


async def large_states(stream: Stream) -> None:
    """Of large events that have all so far, the newest is enough for one who is behind."""
    reader = stream.reader()
    stream.open()
    for number in range(30):
        stream.publish([state(f"{number:010}")])
        await stream.room(lambda: 1)
    assert stream.kept <= 100
    assert stream.is_whole
    stream.end(complete=True)
    assert (await text(reader)).endswith("29")


@each("case", [slow, alone, stuck, stuck_before_json, leaves, unread, large_states])
@bounded
async def test_room(case: Case, small: None) -> None:
    """What each case says of readers that are behind."""
    await case(Stream())


@bounded
async def test_has_all() -> None:
    """One who hangs up with the last event in hand has all."""
    stream = Stream()
    reader = stream.reader()
    news = reader.read()
    stream.open()
    stream.publish([delta("a")])
    await anext(news)
    assert not reader.has_all
    stream.publish([delta("b")], is_last=True)
    assert not reader.has_all
    await anext(news)
    assert reader.has_all
    stream.publish([delta("behind")])
    assert reader.has_all
