"""What one proxy changes, the others hear of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Brought
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import SharedStore
from sglang_cached_addon.store.redis.document import Heard
from sglang_cached_addon.store.redis.news import News
from sglang_cached_addon.store.redis.outbox import Outbox
from sglang_cached_addon.store.redis.protocol import CONTROL
from sglang_cached_addon.store.redis.server import SharedServer
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import KEY, OTHER, Knows, Proxy, lists, sharing, silent, until

pytestmark = needs_redis


def test_clears(server: RedisServer) -> None:
    """What a proxy writes before it knows of a clear is not seen by those who know."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        one.append("o", key=OTHER)
        await one.written()
        two.append("b", key=OTHER)
        await two.written()
        await asyncio.wrap_future(one.store.clear(KEY[:8], others=True))
        assert (one.texts(), one.texts(OTHER)) == ("a", "")
        await until(lambda: not two.texts(OTHER))
        assert lists(server) == {"0": "a"}
        assert (await one.bring(1, OTHER)).lease
        clearing = one.store.clear(OTHER[:8])
        assert await one.bring(2) == Brought(), "nothing is read before the server knows"
        await asyncio.wrap_future(clearing)
        await asyncio.wrap_future(two.store.clear())
        await until(lambda: not one.texts())
        one.append("c")
        await one.written()
        await until(lambda: lists(server) == {"3": "c"})
        await until(lambda: not lists(server, OTHER))

    sharing(server, work)


def test_a_clear_after_the_server_lost_all(server: RedisServer) -> None:
    """A clear has a number above all that are known, though the server knows none."""

    async def work(one: Proxy, two: Proxy) -> None:
        for _ in range(2):
            await asyncio.wrap_future(one.store.clear())
        with server.client() as client:
            client.flushall()
            await until(lambda: client.zscore(CONTROL, "clear:all") == 2)
        one.append("a")
        await one.written()
        await asyncio.wrap_future(one.store.clear())
        one.append("b")
        await until(lambda: lists(server) == {"3": "b"})
        await until(lambda: one.store.facts()["pending"] == 0)
        while not two.texts():
            await two.bring(1, claims=False)
        assert two.texts() == "b"

    sharing(server, work)


def test_a_clear_while_the_server_is_away(server: RedisServer) -> None:
    """A clear without the server is made up for before anything is read."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        await one.written()
        await two.bring(1)
        server.stop()
        with pytest.raises(OSError, match="cleared here"):
            await asyncio.wrap_future(one.store.clear())
        assert await one.bring(1) == Brought()
        server.start()
        await until(lambda: one.store.is_up and not two.texts())
        found = await one.bring(1)
        assert found.lease
        assert one.texts() == ""

    sharing(server, work)


def test_epochs(server: RedisServer) -> None:
    """All know of a change, and two changes at once get two numbers."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.knows.epochs.raise_model("model")
        await asyncio.to_thread(one.store.publish)
        await until(lambda: two.knows.epochs.of("model"))
        assert two.knows.epochs.of("model") == one.knows.epochs.of("model")
        one.knows.epochs.raise_model("model")
        two.knows.epochs.raise_model("model")
        assert one.knows.epochs.of("model") != two.knows.epochs.of("model")
        two.knows.epochs.raise_adapter("adapter")
        highest = max(proxy.knows.epochs.of("model") for proxy in (one, two))
        await until(
            lambda: (
                one.knows.epochs.as_numbers() == two.knows.epochs.as_numbers()
                and one.knows.epochs.adapters
            )
        )
        assert one.knows.epochs.of("model") == highest
        # As one that comes later sees it.
        late = SharedStore(server.url, MemoryStore())
        assert Epochs.from_json(late.state.load()["epochs"]).of("model") == highest

    sharing(server, work)


def never(what: object) -> Future[Any]:
    raise AssertionError(what)


class Slow(Outbox):
    """Answers as a server that knows nothing; while it is told of epochs, one is raised."""

    def __init__(self, knows: Knows) -> None:
        super().__init__(SharedServer("redis://127.0.0.1:1"), print)
        self._knows = knows

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        if command[0] == "ZADD":
            self._knows.epochs.raise_model("model")
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(1 if command[0] == "ZADD" else [])
        return answer


def test_epochs_only_rise() -> None:
    """What is raised while the server is told of epochs is not taken back."""

    async def main() -> None:
        knows = Knows(7)
        knows.epochs.raise_model("model")
        news = News(Slow(knows), never, lambda key: asyncio.sleep(0), never, print)
        await news.sync(knows)
        assert knows.epochs.of("model") == knows.epochs.last > (1 << 20) + 7

    asyncio.run(main())


def test_deleted(server: RedisServer) -> None:
    """A pool that was deleted is gone from the server and from every proxy, also what was about to
    be written of it; what comes then is there."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        one.append("o", key=OTHER)
        await one.written()
        await two.bring(2)
        await two.bring(1, OTHER)
        assert (two.texts(), two.texts(OTHER)) == ("ab", "o")
        is_done = await one.store.delete_everywhere(KEY)
        assert one.texts() == ""
        await asyncio.wrap_future(is_done)
        assert lists(server) == {}
        await until(lambda: not two.texts())
        assert two.texts(OTHER) == "o" and lists(server, OTHER) == {"0": "o"}
        two.append("c", at=2.0)
        await two.written()
        assert lists(server) == {"0": "c"}
        await one.bring(1)
        assert one.texts() == "c"
        one.append("d", at=3.0)
        await one.store.delete_everywhere(KEY)
        await until(lambda: not two.texts())
        await two.written()
        assert lists(server) == {}

    sharing(server, work)


class Cleared(Outbox):
    """Answers as a server on which another proxy has cleared all, for the third time."""

    def __init__(self) -> None:
        super().__init__(SharedServer("redis://127.0.0.1:1"), print)

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result([b"clear:all", 3] if command[0] == "ZRANGE" else [])
        return answer


def test_a_clear_that_has_not_happened_here() -> None:
    """The clear of another proxy is noted as heard of when it has happened to what is at hand, so
    that it is made again by a process that follows one that was killed before."""

    async def main() -> None:
        noted: list[Heard] = []
        made: list[Future[Any]] = []

        def clear(kind: str) -> Future[Any]:
            made.append(Future())
            return made[-1]

        def begun() -> News:
            news = News(Cleared(), clear, lambda key: asyncio.sleep(0), never, noted.append)
            news.resume(Heard({"all": 2}, "0-0"))
            return news

        news = begun()
        await news.sync(Knows(7))
        assert news.clears.numbers == {"all": 3} and noted[-1].clears == {"all": 2}
        made[0].set_result(None)
        await news.sync(Knows(7))
        assert (noted[-1].clears, len(made)) == ({"all": 3}, 1)
        news = begun()
        await news.sync(Knows(7))
        made[1].set_exception(OSError("no space"))
        await news.sync(Knows(7))
        assert noted[-1].clears == {"all": 2}

    asyncio.run(main())


def test_a_clear_that_a_later_process_tells(server: RedisServer, tmp_path: Path) -> None:
    """A clear while the server is away is made up for, though the proxy ends before that is
    back."""

    async def used(store: SharedStore, work: Callable[[Proxy], Awaitable[None]]) -> None:
        proxy = Proxy(store)
        store.state.load()
        store.start(proxy.knows)
        try:
            await until(lambda: store.is_up)
            await work(proxy)
        finally:
            store.close()
            await asyncio.sleep(0)

    until_it_ends = ExitStack()

    async def clears(one: Proxy) -> None:
        one.append("a")
        await one.written()
        until_it_ends.enter_context(silent(server))
        with pytest.raises(OSError, match=r"before it is used again$"):
            await asyncio.wrap_future(one.store.clear())

    async def finds_nothing(one: Proxy) -> None:
        assert (await one.bring(1)).lease and one.texts() == ""

    async def says_so(one: Proxy) -> None:
        until_it_ends.enter_context(silent(server))
        with pytest.raises(OSError, match=r"not if this proxy ends before$"):
            await asyncio.wrap_future(one.store.clear())

    for work, folder in (
        (clears, tmp_path), (finds_nothing, tmp_path), (finds_nothing, None), (says_so, None),
    ):  # fmt: skip
        local: OpenStore = DiskStore(folder) if folder else MemoryStore()
        with until_it_ends:
            asyncio.run(used(SharedStore(server.url, local), work))
