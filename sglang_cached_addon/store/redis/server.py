"""A Redis or Valkey server, in bounded time: commands go out together, and fail together.

`redis-py` does the talking to one server, one behind Sentinels, or a Cluster; it is imported only
where there is a URL to open. Nothing here is tried twice: the caller knows when to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from sglang_cached_addon.store.redis.protocol import Command, Result
from sglang_cached_addon.store.redis.urls import read

SECONDS = 0.5
"""How long the server may take to take a connection, or to answer."""

BYTES_PER_SECOND = 10_000_000
"""The server may take a second longer for so many bytes."""


class Away(Exception):
    """The server does not answer, or not as one that works; the message says why."""


class Full(Exception):
    """The server has no room for more."""


class CommandRefused(Exception):
    """The server does not do what a command says."""


class SharedServer:
    """One server, or a cluster. Belongs to an event loop."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that names no server, or if `redis-py` is not installed."""
        try:
            import redis.asyncio
        except ImportError:
            raise ValueError("needs redis-py: pip install 'sglang-cached[redis]'") from None
        self._redis = redis
        self.name, self.is_cluster, self._connect, self._connect_feed = read(url, SECONDS)
        self.trips = 0
        """The number of round trips."""
        self._client: Any = None
        self._closing: set[asyncio.Task[None]] = set()

    async def send(self, commands: Sequence[Command], size: int = 0) -> list[Result]:
        """Returns the answers, in order; the answer to a command that was not done is a `Full` or a
        `CommandRefused`. `size` is the bytes of all that is sent. Raises `Away`; then some commands
        may have been done nevertheless."""
        self.trips += 1
        try:
            async with asyncio.timeout(SECONDS + size / BYTES_PER_SECOND):
                if self._client is None:
                    self._client = self._connect()
                results = await self._send(commands)
        except (self._redis.RedisError, OSError, TimeoutError) as e:
            self.hang_up()
            raise Away(self._reason(e)) from None
        except BaseException:
            self.hang_up()
            raise
        for result in results:
            if isinstance(result, Exception) and self._is_away(result):
                self.hang_up()
                raise Away(self._reason(result))
        return [self._failure(r) if isinstance(r, Exception) else r for r in results]

    async def _send(self, commands: Sequence[Command]) -> list[Result]:
        if self.is_cluster:  # each of them to where its keys are
            sent = (self._client.execute_command(*command) for command in commands)
            return list(await asyncio.gather(*sent, return_exceptions=True))
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute(raise_on_error=False))

    async def listen(self, channel: bytes) -> AsyncIterator[bytes]:
        """Yields an empty message when the channel is heard, then its messages. Raises `Away`."""
        client = self._connect_feed()
        feed = client.pubsub(ignore_subscribe_messages=False)
        try:
            async with asyncio.timeout(SECONDS):
                await feed.subscribe(channel)
            async for message in feed.listen():
                if message["type"] in ("subscribe", "message"):
                    yield message["data"] if message["type"] == "message" else b""
        except (self._redis.RedisError, OSError, TimeoutError) as e:
            raise Away(self._reason(e)) from None
        finally:
            self._close(feed.aclose)
            self._close_client(client)

    def hang_up(self) -> None:
        """Lets go of all connections; the next command makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            self._close_client(client)

    def _close_client(self, client: Any) -> None:
        self._close(client.aclose)
        pool = getattr(client, "connection_pool", None)
        for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
            self._close(sentinel.aclose)

    def _close(self, close: Callable[[], Any]) -> None:
        async def bounded() -> None:
            with suppress(Exception):
                async with asyncio.timeout(SECONDS):
                    await close()

        task = asyncio.ensure_future(bounded())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Hangs up, and returns when that is done."""
        self.hang_up()
        while self._closing:
            await asyncio.wait(tuple(self._closing))

    # What errors mean

    def _is_away(self, error: Exception) -> bool:
        errors = self._redis.exceptions
        away = (
            errors.ReadOnlyError,
            errors.ClusterDownError,
            errors.TryAgainError,
            errors.NoPermissionError,
        )
        return not isinstance(error, errors.ResponseError) or isinstance(error, away)

    def _failure(self, error: Exception) -> Exception:
        text = str(error)
        is_full = isinstance(error, self._redis.OutOfMemoryError)
        is_full |= text.startswith(("MISCONF", "NOREPLICAS"))
        return Full(text) if is_full else CommandRefused(text)

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError | self._redis.TimeoutError):
            return f"no answer within {SECONDS} s"
        return str(error) or type(error).__name__


def ask_once(url: str, *command: object) -> Result:
    """The answer of a server, in bounded time, from any thread; None if there is none."""

    async def ask() -> Result:
        server = SharedServer(url)
        try:
            return (await server.send([command]))[0]
        finally:
            await server.close()

    thread = ThreadPoolExecutor(1)  # of its own, as a loop may run in this one
    answer = thread.submit(asyncio.run, ask())
    thread.shutdown(wait=False)
    try:
        found = answer.result(3 * SECONDS)
    except (Away, TimeoutError):
        return None
    return None if isinstance(found, Exception) else found
