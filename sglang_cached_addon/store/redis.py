"""A Redis or Valkey server, in bounded time: commands go out together, and fail as one.

`redis-py` does the talking: one server, one behind Sentinels, or a Cluster. It is imported only
where there is a URL to open. Nothing here tries anything twice; who asks knows when to try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

SECONDS = 0.5
"""How long the server may take to take a connection, or to answer."""

BYTES_PER_SECOND = 10_000_000
"""So much longer it may take where much is sent."""

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "rediss+cluster")

Command = tuple[Any, ...]
Result = Any


class Away(Exception):
    """The server does not answer, or not as one that works; the message says why."""


class Full(Exception):
    """The server takes nothing more to be stored."""


class Refused(Exception):
    """The server does not do this one thing."""


class Server:
    """One server, or a cluster. Belongs to an event loop."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL that names none, or if `redis-py` is not installed."""
        try:
            import redis.asyncio
        except ImportError:
            raise ValueError("needs redis-py: pip install 'sglang-cached[redis]'") from None
        self._redis = redis
        self.name, self.is_cluster, self._connect, self._connect_feed = _read(url)
        self.trips = 0
        """Round trips."""
        self._client: Any = None
        self._closing: set[asyncio.Task[None]] = set()

    async def send(self, commands: Sequence[Command], size: int = 0) -> list[Result]:
        """The answers, in order; `Full` or `Refused`, not raised, for those that were not done.
        `size`: of all that is sent. Raises `Away`; then some may have been done nevertheless."""
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
        """The messages of a channel; first an empty one, when it is listened to. Raises `Away`."""
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
        return Full(text) if is_full else Refused(text)

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError | self._redis.TimeoutError):
            return f"no answer within {SECONDS} s"
        return str(error) or type(error).__name__


_Connect = Callable[[], Any]


class _Wrong(ValueError):
    """Says what is wrong in our own words."""


def _read(url: str) -> tuple[str, bool, _Connect, _Connect]:
    """What to call a server, whether it is a cluster, and how to connect to it: for commands, and
    for messages. Raises ValueError; no message has a password in it."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"must be a URL that begins with one of {', '.join(SCHEMES)}, and ://")
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    more: dict[str, Any] = {
        "socket_timeout": None,  # ours is for a whole round trip
        "socket_connect_timeout": SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        name = f"{scheme}://{host}{parts.path}"
        if scheme == "redis+sentinel":
            connect = feed = _sentinel(url, more)
        else:
            connect = feed = _plain(url.replace("+cluster", ""), more)
            if scheme.endswith("+cluster"):
                connect = _cluster(url.replace("+cluster", ""))
    except _Wrong as e:
        raise ValueError(str(e)) from None
    except (ValueError, TypeError):  # its text may have any part of the URL in it
        raise ValueError(f"the {scheme} URL cannot be read; escape what is special in it") from None
    return name, scheme.endswith("+cluster"), connect, feed


def _plain(url: str, more: dict[str, Any]) -> _Connect:
    from redis.asyncio import Redis
    from redis.asyncio.connection import parse_url

    parts = urlsplit(url)
    if unknown := set(parse_url(url)) - _OPTIONS:
        raise _Wrong(f"unknown options: {', '.join(sorted(unknown))}")
    if parts.scheme == "unix":
        if not parts.path:
            raise _Wrong("must be like unix:///PATH/OF/SOCKET?db=0")
    elif not (parts.hostname and (parts.path.strip("/") or "0").isdigit()):
        raise _Wrong(f"must be like {parts.scheme}://HOST:6379/0")
    return lambda: Redis.from_url(url, **more)


def _cluster(url: str) -> _Connect:
    from redis.asyncio.cluster import RedisCluster

    if urlsplit(url).path not in ("", "/", "/0"):
        raise _Wrong("a cluster has no database but 0")
    return lambda: RedisCluster.from_url(url, socket_connect_timeout=SECONDS)


def _sentinel(url: str, more: dict[str, Any]) -> _Connect:
    from redis.asyncio.sentinel import Sentinel

    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not (hosts and service) or parts.query or not (database or "0").isdigit():
        raise _Wrong("must be like redis+sentinel://HOST:26379,HOST:26379/MASTER/0")
    sentinels = []
    for one in hosts.split(","):
        address = urlsplit(f"//{one}")
        sentinels.append((address.hostname or "localhost", address.port or 26379))
    user, _, password = (unquote(part) for part in credentials.partition(":"))
    options = {
        **more,
        "db": int(database or 0),
        "username": user or None,
        "password": password or None,
    }

    def connect() -> Any:
        found = Sentinel(sentinels, sentinel_kwargs=more)  # type: ignore[no-untyped-call]
        return found.master_for(service, **options)

    return connect


_OPTIONS = frozenset(
    {
        "host", "port", "db", "path", "username", "password", "connection_class",
        "client_name", "protocol", "health_check_interval", "socket_keepalive", "max_connections",
        "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path",
        "ssl_check_hostname", "ssl_password", "ssl_min_version", "ssl_ciphers",
    }
)  # fmt: skip
"""What may follow the `?` of a URL, and what it says itself: others would change what answers look
like, or how long they may take."""
