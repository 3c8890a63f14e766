"""Proxies that share a server, each in a few lines."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.cache import Addition, Brought, Sample
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import SharedStore, element
from sglang_cached_addon.store.redis import server as server_module
from tests.redis import RedisServer

KEY, OTHER = b"m" * 8 + b"1" * 24, b"o" * 8 + b"2" * 24


def said(samples: Iterable[Sample]) -> str:
    return "".join(orjson.loads(sample.answer)[""] for sample in samples)


class Knows:
    """Has epochs, as the upstream does."""

    def __init__(self, salt: int) -> None:
        self.epochs = Epochs(salt=salt)

    def adopt(self, known: Mapping[str, int], theirs: Mapping[str, int]) -> None:
        self.epochs.merge(known, theirs)


class Proxy:
    """A store, as a proxy has one."""

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self.knows = Knows(store.salt)

    def append(self, *texts: str, key: bytes = KEY, at: float = 1.0, **more: Any) -> None:
        samples = [Sample(b'{"":"%b"}' % text.encode(), at, 0.5, 1) for text in texts]
        self.store.append(Addition(key, "generate", b"{}", samples, **more))

    def texts(self, key: bytes = KEY) -> str:
        return said(self.store.get(key))

    async def bring(self, need: int, *keys: bytes, claims: bool = True) -> Brought:
        bringing = self.store.bring(dict.fromkeys(keys or (KEY,), need), claims=claims)
        return await bringing if bringing else Brought()

    async def written(self) -> None:
        await until(lambda: not self.store.facts()["pending"])


@contextmanager
def silent(redis: RedisServer) -> Iterator[None]:
    """Meanwhile the server says nothing, and nobody waits long for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "SECONDS", 0.2)
        redis.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            redis.signal(signal.SIGCONT)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def sharing(
    server: RedisServer,
    work: Callable[[Proxy, Proxy], Awaitable[None]],
    local: Callable[[], OpenStore] = MemoryStore,
) -> None:
    """Lets two proxies do something; the first has its own kind of local store."""

    async def main() -> None:
        proxies = [Proxy(SharedStore(server.url, kind())) for kind in (local, MemoryStore)]
        for proxy in proxies:
            proxy.store.state.load()
            proxy.store.start(proxy.knows)
        try:
            for proxy in proxies:
                await until(lambda proxy=proxy: proxy.store.is_up)
            await work(*proxies)
        finally:
            for proxy in proxies:
                proxy.store.close()
            await asyncio.sleep(0)

    asyncio.run(main())


def lists(server: RedisServer, key: bytes = KEY) -> dict[str, str]:
    """What the server has of a pool, by the name of the list."""
    found = {}
    with server.client() as client:
        for name in client.keys(f"*{key.hex()}*:[0-9]*"):
            samples = [element.decode(one)[1] for one in client.lrange(name, 0, -1)]
            found[name.decode().rpartition(":")[2]] = said(samples)
    return found
