"""Commands are answered or fail in bounded time."""

from __future__ import annotations

import asyncio
import time

import pytest

from sglang_cached_addon.store.redis.server import (
    Away,
    CommandRefused,
    Full,
    SharedServer,
    ask_once,
)
from tests.ports import free_port
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import silent


@needs_redis
def test_commands(server: RedisServer) -> None:
    """A command that fails spoils no other."""

    async def main() -> None:
        found = SharedServer(server.url)
        assert await found.send([("SET", "a", b"1"), ("GET", "a")]) == [True, b"1"]
        wrong, right = await found.send([("LLEN", "a"), ("GET", "a")])
        assert isinstance(wrong, CommandRefused)
        assert right == b"1"
        assert found.trips == 2
        await found.send([("CONFIG", "SET", "maxmemory", 1)])
        full, right = await found.send([("SET", "b", "2"), ("GET", "a")])
        assert isinstance(full, Full)
        assert right == b"1"
        await found.close()

    asyncio.run(main())


@needs_redis
def test_away_and_back(server: RedisServer) -> None:
    """A server that is away, or says nothing, fails soon, and works once it is back."""

    async def main() -> None:
        found = SharedServer(server.url)
        await found.send([("PING",)])
        server.stop()
        for _ in range(2):
            with pytest.raises(Away):
                await found.send([("PING",)])
        server.start()
        assert await found.send([("PING",)])
        started = time.monotonic()
        with silent(server), pytest.raises(Away, match="no answer within"):
            await found.send([("PING",)])
        assert time.monotonic() - started < 5
        assert await found.send([("GET", "a")]) == [None]  # and not the last answer
        await found.close()

    asyncio.run(main())


def test_nobody_there() -> None:
    """Where nobody listens, a command fails."""

    async def main() -> None:
        with pytest.raises(Away):
            await SharedServer(f"redis://127.0.0.1:{free_port()}").send([("PING",)])

    asyncio.run(main())


@needs_redis
def test_messages(server: RedisServer) -> None:
    """Messages come in order, from the subscription on, until the server is away."""

    async def main() -> None:
        found = SharedServer(server.url)
        messages = found.listen(b"news")
        assert await anext(messages) == b""
        await found.send([("PUBLISH", "news", b"one"), ("PUBLISH", "news", b"two")])
        assert [await anext(messages), await anext(messages)] == [b"one", b"two"]
        server.stop()
        with pytest.raises(Away):
            await anext(messages)
        await found.close()

    asyncio.run(main())


@needs_redis
def test_ask_once(server: RedisServer) -> None:
    """A thread that may have a loop gets one answer, or None."""

    async def main() -> None:
        assert ask_once(server.url, "ECHO", "x") == b"x"
        assert ask_once(server.url, "NONSENSE") is None
        server.stop()
        assert ask_once(server.url, "ECHO", "x") is None

    asyncio.run(main())
