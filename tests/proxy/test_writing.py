"""Answers are written at the pace of their client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

from sglang_cached_addon.core.call_head import CallHead
from sglang_cached_addon.core.log_line import Ended
from sglang_cached_addon.core.outcome import NOTHING, Kind, Outcome
from sglang_cached_addon.proxy.writing import LARGE, LEFT, Writer, paced
from sglang_cached_addon.service.asking import Ask, Reply, Streamed
from sglang_cached_addon.service.findings import Bypass, Hit
from sglang_cached_addon.service.stream import Cut
from sglang_cached_addon.wire import http1

MISS = Outcome(Kind.MISS)
EVENTS = [b"data: a\n\n", b"data: b\n\n", b"data: [DONE]\n\n"]


class Transport:
    """Takes what is written; after `room` bytes it is full."""

    def __init__(self, room: float = float("inf")) -> None:
        self.data = bytearray()
        self.room = room
        self.largest = 0
        self.writer: Writer | None = None

    def write(self, data: bytes) -> None:
        self.data += data
        self.largest = max(self.largest, len(data))
        if len(self.data) > self.room and self.writer:
            self.writer.pause()

    def is_closing(self) -> bool:
        return False


class FakeDesk:
    """Where nobody asks for anything; `logged` are the outcomes."""

    upstream_url = "http://x"

    def __init__(self, rate: float) -> None:
        self.replay_rate = rate
        self.logged: list[Outcome] = []
        self.streams = 0

    def log(self, ended: Ended) -> None:
        self.logged.append(ended.outcome)

    def begun(self, started: float) -> None:
        self.streams += 1


ASK = Ask(CallHead("POST", "/generate"), b"{}", ())


def writing(room: float = float("inf"), rate: float = 0.0) -> tuple[Writer, Transport]:
    transport: Any = Transport(room)
    desk: Any = FakeDesk(rate)
    transport.writer = Writer(transport, desk, lambda: None)
    transport.desk = desk
    return transport.writer, transport


def test_small() -> None:
    """A small answer is one write."""
    writer, transport = writing()
    asyncio.run(writer.serve(ASK, Reply(201, ((b"a", b"1"),), b"body", MISS), 0.0))
    assert transport.data.startswith(b"HTTP/1.1 201 Created\r\na: 1\r\ncontent-length: 4\r\n")
    assert transport.data.endswith(b"\r\n\r\nbody")
    assert transport.largest == len(transport.data)


def test_large() -> None:
    """Of a large answer no more is written than the client takes; the rest when it has."""
    body = bytes(range(256)) * (LARGE // 64)

    async def test() -> None:
        writer, transport = writing(room=LARGE)
        task = asyncio.ensure_future(writer.serve(ASK, Reply(200, (), body, MISS), 0.0))
        while not writer.is_full:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(transport.data) < 2 * LARGE
        transport.room = float("inf")
        writer.resume()
        await task
        assert transport.data.partition(b"\r\n\r\n")[2] == body
        assert transport.largest < LARGE

    asyncio.run(test())


def test_streams() -> None:
    """Each event is a chunk, whether it is new or stored, whatever its pace; a stream that breaks
    off has no last one."""

    async def pieces(error: Exception | None) -> AsyncIterator[list[bytes]]:
        for events in (EVENTS[:2], [], EVENTS[2:]):
            yield events
        if error:
            raise error

    def streamed(error: Exception | None = None) -> Streamed:
        return Streamed((), pieces(error), MISS, lambda is_complete: MISS, ExitStack())

    def written(answer: Any, rate: float = 0.0) -> bytes:
        writer, transport = writing(rate=rate)
        with suppress(Cut):
            asyncio.run(writer.serve(ASK, answer, 0.0))
        return bytes(transport.data.partition(b"\r\n\r\n")[2])

    hit = Hit(http1.chunked(EVENTS), MISS, NOTHING, "m", is_stream=True, longest=1)
    assert written(streamed()) == written(hit) == written(hit, 1000.0) == http1.chunked(EVENTS)
    for error in (Cut(), ValueError("a fault of ours")):
        assert written(streamed(error)) == http1.chunks(EVENTS)


def test_pace() -> None:
    """A paced stream comes event by event, and takes the time that it is given; else it is one."""

    async def batches(seconds: float) -> tuple[list[list[bytes]], float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        return [events async for events in paced(EVENTS, seconds)], loop.time() - began

    assert asyncio.run(batches(0.0))[0] == [EVENTS]
    found, took = asyncio.run(batches(0.1))
    assert found == [[event] for event in EVENTS]
    assert took >= 0.09


def test_outcomes() -> None:
    """Each call is logged once: as what it came to, as left where its client was gone first, and
    not at all where others answer it."""
    done = Outcome(Kind.MISS, 0, 1)
    streamed = Streamed((), _never(), MISS, lambda is_complete: done, ExitStack())

    async def logged(answer: Any, *, is_left: bool = False) -> list[Outcome]:
        writer, transport = writing()
        task = asyncio.ensure_future(writer.serve(ASK, answer, 0.0))
        if is_left:
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        return transport.desk.logged

    async def failing() -> Reply:
        raise ValueError("a fault of ours")

    async def test() -> None:
        assert await logged(Reply(200, (), b"", done)) == [done]
        assert await logged(Bypass(done)) == []
        assert await logged(failing()) == []
        assert await logged(asyncio.sleep(60), is_left=True) == [LEFT]
        assert await logged(streamed, is_left=True) == [done]

    asyncio.run(test())


async def _never() -> AsyncIterator[list[bytes]]:
    yield EVENTS[:1]
    await asyncio.sleep(60)
