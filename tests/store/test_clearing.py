"""Clearing a part of a store while calls go on."""

from __future__ import annotations

import asyncio
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.clearing import Cleared
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.memory import MemoryStore
from tests.conftest import until

MANY = 100_000
HELD_SECONDS = 0.02
"""How long nobody may be held up, in CPU time of the event loop: a busy machine changes nothing."""

X, Y = b"x" * 8, b"y" * 8
RAW = b"r" * 16


def key(model: bytes, n: int) -> bytes:
    return model + b"%024d" % n


def put(store: OpenStore, model: bytes, n: int, text: str, raw: bytes = b"") -> None:
    answer = b'{"":"%b"}' % text.encode()
    addition = Addition(key(model, n), "chat", b"{}", [Sample(answer, 1.5, 0.5, 1)], raw)
    assert store.append(addition)


def texts(store: OpenStore, model: bytes, n: int) -> str:
    return "".join(one.answer.decode()[5:-2] for one in store.get(key(model, n)))


@contextmanager
def kinds(folder: Path) -> Iterator[list[OpenStore]]:
    disk = DiskStore(folder)
    try:
        yield [MemoryStore(), disk]
    finally:
        disk.close()


async def longest_turn(is_over: Callable[[], bool]) -> tuple[float, int]:
    """How much CPU time passes at most between two turns of somebody else, and how many they
    are."""
    longest, count = 0.0, 0
    while not is_over():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest, count = max(longest, time.thread_time() - before), count + 1
    return longest, count


def test_nobody_is_held_up() -> None:
    """A clear of many keys has turns, whether it is of a model or of all."""

    async def work() -> None:
        store = MemoryStore()
        for n in range(MANY):
            put(store, X, n, "a")
        put(store, Y, 0, "b")
        gc.freeze()  # what others have made is not to be looked through in a turn
        is_done = store.clear(X)
        longest, count = await longest_turn(is_done.done)
        assert longest < HELD_SECONDS and count > 10
        assert is_done.result() == Cleared(MANY, MANY)
        assert list(store) == [key(Y, 0)]
        for n in range(MANY):
            put(store, X, n, "a")
        gc.freeze()
        before = time.thread_time()
        assert store.clear().result() == Cleared(MANY + 1, MANY + 1)
        first = time.thread_time() - before
        end = time.monotonic() + 0.1
        longest, _ = await longest_turn(lambda: time.monotonic() > end)
        assert max(first, longest) < HELD_SECONDS
        assert list(store) == []

    try:
        asyncio.run(work())
    finally:
        gc.unfreeze()


def test_calls_that_come_meanwhile(tmp_path: Path) -> None:
    """From the first moment on nothing is given that was there before, and what is stored then
    stays, behind nothing that was there; other models are as they were."""

    async def use(store: OpenStore) -> None:
        for n in range(300):
            put(store, X, n, "a", RAW if n == 7 else b"")
            put(store, Y, n, "b")
        before = store.generation, store.cleared([key(X, 0)])
        is_done = store.clear(X)
        assert store.generation > before[0] and store.cleared([key(X, 0)]) > before[1]
        assert (texts(store, X, 7), texts(store, Y, 7)) == ("", "b")
        put(store, X, 0, "c")
        put(store, X, 0, "d")
        put(store, X, 999, "e")
        store.delete(key(X, 4))
        put(store, X, 4, "f")
        assert store.size(key(X, 1)) == 0
        store.delete(key(X, 4))  # before any turn of the clear
        put(store, X, 4, "f")
        looked = await store.look([key(X, 2), key(X, 0)])
        assert [len(looked.get(key(X, n), ())) for n in (2, 0)] == [0, 2]
        if bringing := store.bring({key(X, 3): 1}, claims=False):
            await bringing
        assert texts(store, X, 3) == ""
        # One of them was deleted, which is no part of the clear.
        assert await asyncio.wrap_future(is_done) == Cleared(299, 299)
        assert [texts(store, X, n) for n in (0, 1, 4, 999)] == ["cd", "", "f", "e"]
        assert [texts(store, Y, n) for n in (0, 299)] == ["b", "b"]
        assert store.find(RAW) is None
        assert (len(store.index), store.index.samples) == (303, 304)

    with kinds(tmp_path) as stores:
        for store in stores:
            asyncio.run(use(store))
    with kinds(tmp_path) as (_, again):
        assert [texts(again, X, n) for n in (0, 1, 4, 999)] == ["cd", "", "f", "e"]
        assert (len(again.index), again.index.samples) == (303, 304)


def test_two_at_a_time(tmp_path: Path) -> None:
    """What is stored between the beginnings of two clears is gone with the second one, if that is
    of it; each tells what it has removed."""

    async def use(store: OpenStore) -> None:
        for n in range(200):
            put(store, X, n, "a")
            put(store, Y, n, "b")
        first = store.clear(X)
        put(store, X, 0, "c")
        second = store.clear(Y, others=True)
        put(store, X, 1, "d")
        found = await asyncio.gather(*map(asyncio.wrap_future, (first, second)))
        assert (sum(one.entries for one in found), found[1].entries > 0) == (201, True)
        assert [texts(store, X, n) for n in (0, 1)] == ["", "d"]
        assert len(store.index) == 201

    with kinds(tmp_path) as stores:
        for store in stores:
            asyncio.run(use(store))


def test_nobody_waits_for_it(tmp_path: Path) -> None:
    """A clear goes on though who wanted it has left."""

    async def use(store: OpenStore) -> None:
        for n in range(300):
            put(store, X, n, "a")
        store.clear(X).cancel()
        while len(store.index):
            await asyncio.sleep(0)
        assert [texts(store, X, n) for n in (0, 299)] == ["", ""]

    with kinds(tmp_path) as stores:
        for store in stores:
            asyncio.run(use(store))


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """A process that is killed during a clear may have cleared or not; it has kept what was stored
    meanwhile, and other models."""
    folder, killed = tmp_path / "one", tmp_path / "killed"

    async def use(store: DiskStore) -> None:
        for n in range(300):
            put(store, X, n, "a")
            put(store, Y, n, "b")
        until(lambda: not store.journal.pending)
        is_done = store.clear(X)
        put(store, X, 0, "c")
        put(store, X, 999, "e")
        until(lambda: not store.journal.pending)
        killed.mkdir()
        shutil.copy(folder / "cache.jsonl", killed)
        assert not is_done.done()
        await asyncio.wrap_future(is_done)

    disk = DiskStore(folder)
    try:
        asyncio.run(use(disk))
    finally:
        disk.close()
    again = DiskStore(killed)
    try:
        pools = [texts(again, X, n) for n in (0, 1, 999)]
        assert "c" in pools[0] and pools[1] in ("", "a") and pools[2] == "e"
        assert texts(again, Y, 299) == "b"
    finally:
        again.close()
