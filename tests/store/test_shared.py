"""A shared store at its edges, against a real server; the rest is in e2e/test_redis.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.cache import Brought, Sample
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.store import DiskStore, element, shared
from sglang_cached_addon.store.shared import MemoryStore, SharedStore
from tests.redis import RedisServer, needs_redis

pytestmark = needs_redis

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
        self.store.append(key, "generate", b"{}", samples, **more)

    def texts(self, key: bytes = KEY) -> str:
        return said(self.store.get(key))

    async def bring(self, need: int, *keys: bytes, claims: bool = True) -> Brought:
        bringing = self.store.bring(dict.fromkeys(keys or (KEY,), need), claims=claims)
        return await bringing if bringing else Brought()

    async def written(self) -> None:
        await until(lambda: not self.store.facts()["pending"])


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path)
    yield started
    started.stop()


def sharing(
    server: RedisServer,
    work: Callable[[Proxy, Proxy], Awaitable[None]],
    local: Callable[[], DiskStore | MemoryStore] = MemoryStore,
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


def test_pools_grow_together(server: RedisServer) -> None:
    async def work(one: Proxy, two: Proxy) -> None:
        brought = await one.bring(2)
        assert brought.lease
        one.append("a", "b")
        brought.lease.release()
        await one.written()
        assert not (await two.bring(1)).lease
        assert two.texts() == "a"
        assert not (await two.bring(2)).lease
        assert two.texts() == "ab"
        brought = await two.bring(3)
        assert brought.lease
        two.append("c")
        brought.lease.release()
        await two.written()
        assert await one.bring(3, claims=False) == Brought()
        assert one.texts() == "abc"
        assert lists(server) == {"0": "abc"}

    sharing(server, work)


def test_all_or_nothing(server: RedisServer) -> None:
    """Who gets only some of the leases that it wants keeps none of them while it waits."""

    async def work(one: Proxy, two: Proxy) -> None:
        first = await one.bring(1, KEY)
        assert first.lease
        both = asyncio.ensure_future(two.bring(1, KEY, OTHER))
        await until(lambda: two.store.facts()["waiting"])
        other = await one.bring(1, OTHER)
        assert other.lease
        for lease in (first.lease, other.lease):
            lease.release()
        found = await both
        assert found.lease
        assert two.store.facts()["leases"] == 2

    sharing(server, work)


def test_who_stops_waiting_leaves_nothing(server: RedisServer) -> None:
    async def work(one: Proxy, two: Proxy) -> None:
        first = await one.bring(1)
        waiting = asyncio.ensure_future(two.bring(1))
        await until(lambda: two.store.facts()["waiting"])
        waiting.cancel()
        assert first.lease
        first.lease.release()
        # In the middle of claiming.
        claiming = asyncio.ensure_future(two.bring(1))
        await asyncio.sleep(0)
        claiming.cancel()
        await one.written()
        again = await one.bring(1)
        assert again.lease
        assert not two.store.facts()["waiting"] + two.store.facts()["leases"]

    sharing(server, work)


def test_two_who_did_not_know_of_each_other(server: RedisServer) -> None:
    """All that was generated is there, in one order, and nothing twice."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        two.append("c")
        await until(lambda: sorted(lists(server).get("0", "")) == ["a", "b", "c"])
        together = lists(server)["0"]
        for proxy in (one, two):
            await proxy.written()
            while len(proxy.texts()) < 3:
                await proxy.bring(3, claims=False)
            assert proxy.texts() == together

    sharing(server, work)


def test_written_twice(server: RedisServer) -> None:
    """A write whose answer was lost is tried again, and is there once."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        await one.written()
        for base in (0, 1):
            one.store._push(KEY, "generate", list(one.store.get(KEY)), base)
        one.store._push(KEY, "generate", list(one.store.get(KEY))[1:], 1)
        one.append("c")
        await one.written()
        assert lists(server) == {"0": "abc"}
        assert one.texts() == "abc"

    sharing(server, work)


def test_a_list_that_vanishes(server: RedisServer) -> None:
    """As the server's memory runs out, or it comes back empty."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        await one.written()
        with server.client() as client:
            client.flushall()
        assert one.texts() == "ab"
        brought = await one.bring(3)
        assert brought.lease
        one.append("c")
        brought.lease.release()
        await one.written()
        assert lists(server) == {"0": "abc"}

    sharing(server, work)


def test_another_list(server: RedisServer) -> None:
    """What others have is taken, rather than mixed with what is at hand."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", "b")
        await one.written()
        with server.client() as client:
            client.flushall()
        two.append("c", "d", "e")
        await two.written()
        generation = one.store.generation
        while len(one.texts()) < 3:
            await one.bring(3, claims=False)
        assert one.texts() == "cde"
        assert one.store.generation > generation

    sharing(server, work)


@pytest.mark.parametrize("junk", [b"junk", b"4 00000000 1.0 x {}\n"])
def test_what_cannot_be_read(
    junk: bytes, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pool is not used, and that is said once."""

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a")
        await one.written()
        with server.client() as client:
            (name,) = client.keys("*:0")
            client.rpush(name, junk)
            client.set(name.replace(KEY.hex().encode(), OTHER.hex().encode()), "no list")
        for key in (KEY, OTHER):
            for _ in range(2):
                assert await two.bring(2, key) == Brought()
                two.append("x", key=key)
        assert (two.texts(), two.texts(OTHER)) == ("xx", "xx")
        assert two.store.is_up
        assert len([r for r in caplog.records if "cannot be used" in r.message]) == 1
        two.append("y", since=5.0, at=6.0)
        await two.written()
        assert lists(server)["0"] == two.texts() == "yx"

    sharing(server, work)


def test_older_samples_are_dropped(server: RedisServer) -> None:
    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a", at=1.0)
        one.append("b", at=2.0)
        await one.written()
        while len(two.texts()) < 2:
            await two.bring(2, claims=False)
        one.append("c", at=3.0, since=2.0)
        await until(lambda: two.texts() != "ab")
        assert two.texts() == "cb"
        assert lists(server) == {"0": "cb"}
        two.append("d", "e", at=9e9, since=inf)  # a clock that runs ahead
        await until(lambda: one.texts() != "cb")
        assert one.texts() == two.texts() == "de"
        one.append("f", at=4.0, since=3.5)
        await until(lambda: two.texts() != "de")
        assert lists(server) == {"0": "fe"}
        assert one.texts() == two.texts() == "fe"

    sharing(server, work)


def test_clears(server: RedisServer) -> None:
    """What one who does not know of a clear yet writes is not seen by anybody who does."""

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
        await asyncio.wrap_future(two.store.clear())
        await until(lambda: not one.texts())
        one.append("c")
        await one.written()
        await until(lambda: lists(server) == {"2": "c"})
        await until(lambda: not lists(server, OTHER))

    sharing(server, work)


def test_a_clear_while_the_server_is_away(server: RedisServer) -> None:
    """Is made up for before anything is read."""

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
    """A change is known to all, and two at once get two numbers."""

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


def test_epochs_while_the_server_is_away(server: RedisServer) -> None:
    async def work(one: Proxy, two: Proxy) -> None:
        server.stop()
        one.knows.epochs.raise_model("model")
        await asyncio.to_thread(one.store.publish)
        server.start()
        await until(lambda: two.knows.epochs.of("model") == one.knows.epochs.of("model"))

    sharing(server, work)


def test_a_folder_has_what_was_brought(server: RedisServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache"

    async def work(one: Proxy, two: Proxy) -> None:
        two.append("a", at=1.0)
        two.append("b", at=2.0)
        await two.written()
        while len(one.texts()) < 2:
            await one.bring(2, claims=False)
        one.append("c", at=3.0)
        await one.written()

    sharing(server, work, lambda: DiskStore(folder))
    found = DiskStore(folder)
    assert said(found.get(KEY)) == "abc"
    assert [sample.stored_at for sample in found.get(KEY)] == [1.0, 2.0, 3.0]
    found.close()


def test_a_sample_that_is_too_large(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared, "MAX_ELEMENT", 200)

    async def work(one: Proxy, two: Proxy) -> None:
        one.append("a" * 300)
        assert one.texts() == "a" * 300
        assert one.store.facts()["pending"] == 0
        assert "too large" in caplog.text

    sharing(server, work)


def test_expiry_without_a_folder() -> None:
    """`--ttl` would mean nothing where only memory and a server keep answers."""
    now = time.time()
    store = MemoryStore(ttl=100.0)
    store.append(b"a" * 32, "chat", b"", [Sample(b"{}", at, 0.5, 3) for at in (now - 200, now)])
    generation = store.generation
    assert [sample.stored_at for sample in store.get(b"a" * 32)] == [now]
    assert store.generation > generation
    assert store.is_expired(now - 101)
    assert not MemoryStore().is_expired(now - 101)


ODD_STATES = [
    {"shared": []},
    {"shared": {"clears": 1, "replaced": 0}},
    {"shared": {"clears": {"all": "2"}, "replaced": 0}},
    {"shared": {"clears": {"odd": 2}, "replaced": 0}},
    {"shared": {"clears": {}, "replaced": None}},
    {"epochs": 7},
    {"epochs": {"last": "1", "floor": 0, "models": {}, "adapters": {}}},
]


@pytest.mark.parametrize("document", ODD_STATES, ids=str)
def test_a_state_that_makes_no_sense(
    document: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A proxy would not start, or would not hear of what others have cleared, without a word."""
    local = DiskStore(tmp_path)
    local.state.save(document)
    store = SharedStore("redis://127.0.0.1:1/0", local)
    assert store.state.load() == {}
    assert store.state.known is None
    assert "moved to state.json.broken" in caplog.text
    store.close()
