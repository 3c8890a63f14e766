"""What goes out, in which order, and what is kept, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from sglang_cached_addon.store.redis import outbox
from sglang_cached_addon.store.redis.outbox import Outbox, Write
from sglang_cached_addon.store.redis.server import Away, CommandRefused, SharedServer
from tests.redis import RedisServer, needs_redis

pytestmark = needs_redis


def running(server: RedisServer, work: Callable[[Outbox, list[str]], Awaitable[None]]) -> None:
    async def main() -> None:
        lost: list[str] = []
        connection = SharedServer(server.url)
        box = Outbox(connection, lost.append)
        task = asyncio.create_task(box.run())
        try:
            await work(box, lost)
        finally:
            task.cancel()
            await connection.close()

    asyncio.run(main())


def push(value: str, size: int = 1, done: Callable[[Any], object] = print) -> Write:
    return Write(lambda: ("RPUSH", "list", value), b"k", size, done)


def test_order(server: RedisServer) -> None:
    """An ask sees what was written before it."""

    async def work(box: Outbox, lost: list[str]) -> None:
        box.open()
        for value in "abc":
            assert box.queue(push(value))
        assert box.waits(b"k")
        found = box.ask("LRANGE", "list", 0, -1)
        assert await found == [b"a", b"b", b"c"]
        assert (len(box), box.bytes, box.waits(b"k"), box.commands) == (0, 0, False, 4)

    running(server, work)


def test_writes_are_kept(server: RedisServer) -> None:
    """Writes are kept until the server is back and the outbox open; asks fail at once."""

    async def work(box: Outbox, lost: list[str]) -> None:
        box.queue(push("a"))
        assert await box.ask("LLEN", "list") == 0  # closed
        box.open()
        server.stop()
        with pytest.raises(Away):
            await box.ask("LLEN", "list")
        assert len(lost) == 1
        assert not box.is_open
        box.queue(push("b"))
        box.drop(lambda write: False)
        server.start()
        assert await box.ask("LLEN", "list") == 0
        box.open()
        assert await box.ask("LRANGE", "list", 0, -1) == [b"a", b"b"]

    running(server, work)


def test_what_is_refused_is_told(server: RedisServer) -> None:
    async def work(box: Outbox, lost: list[str]) -> None:
        told: list[Any] = []
        await box.ask("SET", "list", "x")
        box.open()
        box.queue(push("a", done=told.append))
        await box.ask("PING")
        assert [type(one) for one in told] == [CommandRefused]
        assert (len(box), lost) == (0, [])

    running(server, work)


def test_room(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that there is no room for is counted; one that takes none is always kept."""
    monkeypatch.setattr(outbox, "MAX_PENDING", 10)

    async def work(box: Outbox, lost: list[str]) -> None:
        assert box.queue(push("a", 8))
        assert not box.queue(push("b", 8))
        assert box.queue(push("c", 0))
        assert (box.dropped, box.bytes, len(box)) == (1, 8, 2)
        box.drop(lambda write: write.size == 0)
        assert (box.bytes, len(box)) == (8, 1)
        box.open()
        assert await box.ask("LRANGE", "list", 0, -1) == [b"a"]
        assert box.queue(push("b", 8))

    running(server, work)


class Slow:
    """A server that answers when it is let."""

    name = "slow"

    def __init__(self) -> None:
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def send(self, commands: Sequence[Any], size: int = 0) -> list[int]:
        self.asked.set()
        await self.answers.wait()
        return [1] * len(commands)


def test_dropped_on_its_way() -> None:
    """A write that is dropped while it is under way is told its answer, and others go on."""

    async def main() -> None:
        server, told = Slow(), []
        box = Outbox(server, print)  # type: ignore[arg-type]
        box.open()
        sending = asyncio.create_task(box.run())
        box.queue(push("a", done=told.append))
        await server.asked.wait()
        box.drop(lambda write: True)
        last = asyncio.get_running_loop().create_future()
        box.queue(push("b", done=last.set_result))
        server.answers.set()
        async with asyncio.timeout(60):
            await last
        assert (told, len(box), box.bytes, box.waits(b"k")) == ([1], 0, 0, False)
        sending.cancel()

    asyncio.run(main())
