"""URLs of servers, and what becomes of commands, against real ones."""

from __future__ import annotations

import asyncio
import builtins
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.store.redis import SECONDS, Away, Full, Refused, Server
from tests.redis import RedisServer, free_port, needs_redis
from tests.tables import each


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path)
    yield started
    started.stop()


@each(
    ("url", "name"),
    [
        ("redis://host", "redis://host"),
        ("redis://user:secret@host:1/2", "redis://host:1/2"),
        ("rediss://:secret@host:1/2?ssl_cert_reqs=none", "rediss://host:1/2"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock"),
        ("redis+sentinel://u:secret@a:1,b/main/3", "redis+sentinel://a:1,b/main/3"),
        ("redis+cluster://:secret@host:1", "redis+cluster://host:1"),
    ],
)
def test_names(url: str, name: str) -> None:
    assert Server(url).name == name


@each(
    "url",
    [
        "",
        "host:6379",
        "http://host",
        "redis://",
        "redis://:secret@host:port",
        "redis://:secret/more@host",
        "redis://host/name",
        "redis://host?password=secret&decode_responses=true",
        "redis://host?socket_timeout=secret",
        "redis+sentinel://host:26379",
        "redis+sentinel://host:secret/main",
        "redis+sentinel://host/main/secret",
        "redis+cluster://host/3",
        "unix://",
    ],
)
def test_no_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|the|unknown|a) ") as e:
        Server(url)
    assert "secret" not in str(e.value)


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "redis":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'sglang-cached\[redis\]'"):
        Server("redis://host")


@needs_redis
def test_commands(server: RedisServer) -> None:
    async def main() -> None:
        found = Server(server.url)
        assert await found.send([("SET", "a", b"1"), ("GET", "a")]) == [True, b"1"]
        wrong, right = await found.send([("LLEN", "a"), ("GET", "a")])
        assert isinstance(wrong, Refused)
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
    async def main() -> None:
        found = Server(server.url)
        await found.send([("PING",)])
        server.stop()
        for _ in range(2):
            with pytest.raises(Away):
                await found.send([("PING",)])
        server.start()
        assert await found.send([("PING",)])
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(Away, match="no answer within"):
            await found.send([("PING",)])
        assert time.monotonic() - started < 2 * SECONDS
        server.signal(signal.SIGCONT)
        assert await found.send([("GET", "a")]) == [None]  # and not the last answer
        await found.close()

    asyncio.run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        with pytest.raises(Away):
            await Server(f"redis://127.0.0.1:{free_port()}").send([("PING",)])

    asyncio.run(main())


@needs_redis
def test_messages(server: RedisServer) -> None:
    async def main() -> None:
        found = Server(server.url)
        messages = found.listen(b"news")
        assert await anext(messages) == b""
        await found.send([("PUBLISH", "news", b"one"), ("PUBLISH", "news", b"two")])
        assert [await anext(messages), await anext(messages)] == [b"one", b"two"]
        server.stop()
        with pytest.raises(Away):
            await anext(messages)
        await found.close()

    asyncio.run(main())
