"""Memory and journal together, as the proxy uses them."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Addition, Sample, slots
from sglang_cached_addon.store import DiskStore, Limits, Loaded, StoreError
from sglang_cached_addon.store.clearing import Cleared
from sglang_cached_addon.store.journal.reader import calls_of
from tests.conftest import until
from tests.tables import each

A, B = b"a" * 32, b"b" * 32


def sample(answer: bytes, at: float = 1.5) -> Sample:
    return Sample(answer, at, 0.25, 3)


@contextmanager
def opened(folder: Path) -> Iterator[DiskStore]:
    store = DiskStore(folder)
    try:
        yield store
    finally:
        store.close()


def calls_in(store: DiskStore) -> set[bytes]:
    """What was asked, as the journal keeps it."""
    return {call for _, _, call in calls_of(store.journal.path, 9, 9)}


def pool(store: DiskStore, key: bytes) -> Sequence[Sample]:
    """What is stored, wherever it is."""
    if not store.get(key) and (bringing := store.bring({key: 1}, claims=True)):
        # The system does not have it at hand, or does not tell.
        asyncio.run(bringing)  # type: ignore[arg-type]
    return store.get(key)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cache.jsonl").read_bytes().splitlines()]


def records_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_reopened(tmp_path: Path) -> None:
    """After a restart all is there: pools in their order, also where samples were replaced, sums,
    and the names of bodies. The file has what was asked once for each key."""
    raw = b"r" * 16
    with opened(tmp_path) as store:
        assert store.loaded == Loaded()
        store.append(
            Addition(A, "chat", b'{"q":1}', [sample(b'{"x":1}', 1.0), sample(b'{"x":2}', 2.0)], raw)
        )
        store.append(Addition(B, "generate", b'{"q":2}', [sample(b'{"x":3}', 1.0)]))
        store.append(Addition(A, "chat", b'{"q":1}', [sample(b'{"x":4}', 3.0)], since=2.0))
        assert (store.generation, store.clears) == (1, 0)
        for at in (4.0, 5.0):
            store.append(Addition(B, "generate", b'{"q":2}', [sample(b'{"x":5}', at)], since=inf))
        before = list(pool(store, A)), list(pool(store, B))
        assert [s.answer for s in before[0]] == [b'{"x":4}', b'{"x":2}']
    for _ in range(2):
        with opened(tmp_path) as store:
            assert store.loaded == Loaded(keys=2, samples=3)
            assert store.index.by_dialect == {"chat": 2, "generate": 1}
            assert len(store.memory) == 0
            assert (list(pool(store, A)), list(pool(store, B))) == before
            assert store.memory.bytes == 3 * len(b'{"x":1}')
            assert (store.find(raw), store.find(b"s" * 16)) == (A, None)
    with opened(tmp_path) as store:
        store.append(Addition(A, "chat", b'{"q":1}', [sample(b"{}", 6.0)]))
        assert [call for _, _, call in calls_of(store.journal.path, 9, 9)] == [
            b'{"q":1}',
            b'{"q":2}',
        ]
    calls = [record["call"] for record in records(tmp_path) if "call" in record]
    assert calls == [{"q": 1}, {"q": 2}]


@each(
    ("block", "folder"),
    [
        ("file", "file/cache"), ("file", "file"), ("cache.lock/", ""), ("cache.jsonl/", ""),
        ("cache.jsonl.new/", ""), ("cache.jsonl.torn/", ""),
    ],
)  # fmt: skip
def test_unusable_folder(block: str, folder: str, tmp_path: Path) -> None:
    """A folder that cannot be used is named, with what to do, and is free once it is mended."""
    home = tmp_path / (block + folder).replace("/", "-")
    home.mkdir()
    if block.endswith("/"):
        (home / block).mkdir()
    else:
        (home / block).write_text("")
    if "torn" in block:
        (home / "cache.jsonl").write_bytes(b'{"v":4,')
    with pytest.raises(StoreError) as caught:
        DiskStore(home / folder)
    message = str(caught.value)
    assert str(home / folder) in message
    assert "--cache-path" in message
    assert "\n" not in message
    (home / block).rmdir() if block.endswith("/") else (home / block).unlink()
    with opened(home / folder) as store:
        assert store.loaded.keys == 0


# Samples that are replaced


# Models


def key(model: bytes, n: int) -> bytes:
    return model * 8 + b"%024d" % n


@each(
    ("model", "others", "left"),
    [
        (None, False, ""), (None, True, ""), (b"x", False, "yz"), (b"x", True, "x"),
        (b"z", False, "xy"), (b"w", False, "xyz"), (b"w", True, ""),
    ],
)  # fmt: skip
def test_clear_of_a_model(model: bytes | None, others: bool, left: str, tmp_path: Path) -> None:
    """Just what belongs to a model is removed, or all but that, for good."""
    folder = tmp_path / f"{model!r} {others}" / "which is made"
    with opened(folder) as store:
        store.state.save({"a": 1})
        for n in range(3):
            for one in (b"x", b"y", b"z"):
                asked = b'{"q":%d}' % n
                store.append(
                    Addition(key(one, n), "chat", asked, [sample(b'{"x":1}')], one * 15 + b"%d" % n)
                )

        async def clear(one: DiskStore = store) -> Cleared:
            is_done = one.clear(model and model * 8, others=others)
            assert (one.generation, one.clears) == (1, 1)
            return await asyncio.wrap_future(is_done)

        assert asyncio.run(clear()) == Cleared(9 - 3 * len(left), 9 - 3 * len(left))
        expected = {(one.encode() * 8).hex(): 3 for one in left}
        assert store.index.by_model() == expected
        store.append(Addition(key(b"x", 9), "chat", b'{"q":9}', [sample(b"{}")]))
        store.append(Addition(key(b"x", 0), "chat", b'{"q":0}', [sample(b"{}")]))
    with opened(folder) as store:
        assert store.state.load() == {"a": 1}, "it outlives a clear"
        came_back = (b"x" * 8).hex()
        expected[came_back] = expected.get(came_back, 0) + 2
        assert store.index.by_model() == expected
        for one in (b"x", b"y", b"z"):
            found = store.find(one * 15 + b"1")
            assert found == (key(one, 1) if one.decode() in left else None)
        # What was asked is there once for each key, of those that came back, too.
        asked_of = [found for found, _, _ in calls_of(store.journal.path, 99, 9)]
        assert len(asked_of) == len(set(asked_of)) == len(store.index)


def test_compacts_by_itself(tmp_path: Path) -> None:
    """A file of replaced samples is compacted by itself."""
    path = tmp_path / "cache.jsonl"
    big = b'{"x":"' + b"x" * 100_000 + b'"}'
    with opened(tmp_path) as store:
        store.append(Addition(B, "chat", b'{"q":2}', [sample(b'{"kept":1}')]))
        for at in range(40):
            store.append(Addition(A, "chat", b'{"q":1}', [sample(big, at)], since=inf))
        until(lambda: path.stat().st_size <= 1_500_000 and not store.journal.pending)
    with opened(tmp_path) as store:
        assert [s.stored_at for s in pool(store, A)] == [39]
        assert len(pool(store, B)) == 1
        assert {call for _, _, call in calls_of(store.journal.path, 9, 9)} == {
            b'{"q":1}',
            b'{"q":2}',
        }


def test_what_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal does not take is nowhere, and the order of a pool is one."""
    with opened(tmp_path) as store:
        store.append(Addition(A, "chat", b'{"q":1}', [sample(b'{"x":1}')], b"r" * 16))
        with monkeypatch.context() as patch:
            patch.setattr("sglang_cached_addon.store.journal.backlog.MAX_PENDING", 0)
            assert not store.append(
                Addition(A, "chat", b'{"q":1}', [sample(b'{"x":2}')], since=inf)
            )
            assert not store.append(Addition(A, "chat", b'{"q":1}', [sample(b'{"x":3}')]))
            assert not store.append(
                Addition(B, "chat", b'{"q":2}', [sample(b'{"x":4}')], b"s" * 16)
            )
        assert store.generation == 0
        assert store.append(Addition(A, "chat", b'{"q":1}', [sample(b'{"x":5}')]))
        assert store.append(Addition(B, "chat", b'{"q":2}', [sample(b'{"x":6}')]))
        before = [list(pool(store, key)) for key in (A, B)]
        assert [[s.answer for s in one] for one in before] == [
            [b'{"x":1}', b'{"x":5}'], [b'{"x":6}'],
        ]  # fmt: skip
        assert (store.find(b"r" * 16), store.find(b"s" * 16)) == (A, None)
    with opened(tmp_path) as store:
        assert [list(pool(store, key)) for key in (A, B)] == before
        assert {call for _, _, call in calls_of(store.journal.path, 9, 9)} == {
            b'{"q":1}',
            b'{"q":2}',
        }


def test_samples_of_several_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are several lines, of which the first has the call and the name of the body. What there
    is no room for is nowhere, and those before it stay."""
    big = sample(b'{"x":"' + b"y" * 9000 + b'"}', 2.0)
    with opened(tmp_path) as store:
        new = [sample(b'{"x":1}', 1.0), sample(b'{"x":2}', 2.0)]
        assert store.append(Addition(A, "chat", b'{"q":1}', new, b"r" * 16))
        monkeypatch.setattr("sglang_cached_addon.store.journal.backlog.MAX_PENDING", 5000)
        some = [sample(b'{"x":3}', 1.0), big]
        assert not store.append(Addition(B, "chat", b'{"q":2}', some))
        assert list(store.memory.get(A)) == new
        assert list(store.memory.get(B)) == some[:1]
    written = records(tmp_path)
    assert [record.get("call") for record in written] == [{"q": 1}, None, {"q": 2}]
    assert ["raw" in record for record in written] == [True, False, False]


def test_one_order(tmp_path: Path) -> None:
    """In memory, on the disk and after a restart a pool has one order."""
    numbers = random.Random(5)
    now = time.time()
    model: dict[bytes, list[tuple[bytes, float]]] = {A: [], B: []}
    with limited(tmp_path, memory=3000) as store:
        for n in range(400):
            key, count = numbers.choice([A, B]), numbers.randrange(1, 4)
            at = now + numbers.choice([-2000, -1000, 0, 3600])
            since = numbers.choice([-math.inf, math.inf, now - 1500])
            new = [sample(b'{"x":%d,"i":%d}' % (n, i), at) for i in range(count)]
            if numbers.random() < 0.2:
                settle(store)
                fill(store, *range(5))  # which makes room
            assert store.append(Addition(key, "chat", b"{}", new, since=since))
            pool_of = model[key]
            for place, one in zip(
                slots([t for _, t in pool_of], count, since, now), new, strict=True
            ):
                pool_of[place : place + 1] = [(one.answer, one.stored_at)]
            if n % 100 == 50:
                store.journal.compact().result(60)
            if n % 40 == 39:
                assert {k: [s.answer for s in pool(store, k)] for k in model} == {
                    k: [answer for answer, _ in one] for k, one in model.items()
                }
    for _ in range(2):
        with limited(tmp_path) as store:
            assert {k: [(s.answer, s.stored_at) for s in pool(store, k)] for k in model} == model
            store.journal.compact().result(60)


# Limits


def key_of(n: int) -> bytes:
    return b"%032d" % n


def body(n: int) -> bytes:
    return b'{"x":"%0100d"}' % n


def fill(store: DiskStore, *numbers: int, at: float | None = None) -> None:
    for n in numbers:
        one = sample(body(n), time.time() if at is None else at)
        store.append(Addition(key_of(n), "chat", b'{"q":%d}' % n, [one], b"%016d" % n))


def there(store: DiskStore, count: int) -> list[int]:
    return [n for n in range(count) if pool(store, key_of(n))]


@contextmanager
def limited(folder: Path, **limits: float) -> Iterator[DiskStore]:
    store = DiskStore(folder, limits=Limits(**limits))
    try:
        yield store
    finally:
        store.close()


def settle(store: DiskStore) -> None:
    until(lambda: not store.journal.pending)


def test_what_is_not_in_memory(tmp_path: Path) -> None:
    """What had to make room in memory is found on the disk, and memory is bounded."""
    with limited(tmp_path, memory=10_000) as store:
        fill(store, *range(100))
        settle(store)
        fill(store, 100)
        assert len(store.memory) < 20
        assert store.memory.bytes < 10_000
        generation = store.generation
        for n in range(101):
            assert [s.answer for s in pool(store, key_of(n))] == [body(n)]
            assert store.find(b"%016d" % n) == key_of(n)
        assert len(store.memory) < 20
        assert store.generation == generation
        assert store.bring({key_of(100): 2, b"?" * 32: 1}, claims=True) is None


def test_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was replaced while it was read from the disk is not taken."""
    with limited(tmp_path, memory=1) as store:
        fill(store, 1, at=1.0)
        settle(store)
        fill(store, 2)
        read, times = store.journal.read, []

        def replace(key: bytes, *, waits: bool) -> Any:
            found = read(key, waits=waits)
            if waits and not times:
                times.append(1)
                store.append(Addition(key, "chat", b"{}", [sample(b'{"x":"new"}', 9.0)], since=inf))
                settle(store)
                fill(store, 3)  # which makes room
                assert key not in store.memory
            return found

        monkeypatch.setattr(store.journal, "read", replace)
        bringing = store.bring({key_of(1): 1}, claims=True)
        assert bringing
        asyncio.run(bringing)  # type: ignore[arg-type]
        assert times
        assert [s.answer for s in store.memory.get(key_of(1))] == [b'{"x":"new"}']


@each("memory", [1, 10**9])
def test_least_recently_used_first(memory: int, tmp_path: Path) -> None:
    """What was used last stays, for good."""
    with limited(tmp_path / f"{memory}", entries=5, memory=memory) as store:
        fill(store, *range(5))
        settle(store)
        pool(store, key_of(0))
        store.touch([key_of(2), key_of(1)])
        generation = store.generation
        fill(store, 5)
        assert generation != store.generation
        fill(store, 6)
        assert there(store, 7) == [0, 1, 2, 5, 6]
        assert store.find(b"%016d" % 3) is None
        assert len(store.index) == 5
    with limited(tmp_path / f"{memory}") as store:
        assert there(store, 7) == [0, 1, 2, 5, 6], "what was removed is back"
        store.journal.compact().result(60)
        assert [record["call"]["q"] for record in records(tmp_path / f"{memory}")] == [
            0, 1, 2, 5, 6,
        ]  # fmt: skip


def test_bytes(tmp_path: Path) -> None:
    """The lines that count stay below a limit."""
    with limited(tmp_path, bytes=5_000) as store:
        fill(store, *range(100))
        assert store.index.bytes <= 5_000
        assert there(store, 100) == list(range(100 - len(store.index), 100))
        settle(store)
        store.journal.compact().result(60)
        assert store.journal.path.stat().st_size == store.index.bytes


def test_limits_of_what_is_there(tmp_path: Path) -> None:
    """A smaller limit holds for what is there, too."""
    with limited(tmp_path) as store:
        fill(store, *range(10))
    with limited(tmp_path, entries=3) as store:
        assert there(store, 10) == [7, 8, 9]
        assert len(records(tmp_path)) == 10, "nothing is written for what goes at the start"
        store.journal.compact().result(60)
        assert len(records(tmp_path)) == 3


def test_expiry(tmp_path: Path) -> None:
    """Samples that are too old are not given, after a restart, too."""
    now = time.time()
    with limited(tmp_path) as store:
        fill(store, 0, 1, at=now - 100)
        store.append(Addition(key_of(1), "chat", b"{}", [sample(b'{"x":"new"}', now)]))
        fill(store, 2, at=now)
        fill(store, 3, at=now + 3600)  # the clock was set back
        assert not store.is_expired(now - 99)
    with limited(tmp_path, ttl=50) as store:
        assert there(store, 4) == [1, 2]
        assert [s.answer for s in pool(store, key_of(1))] == [b'{"x":"new"}']
        assert store.is_expired(now - 51)
        assert store.is_expired(now + 99), "the future is of no age that could be told"
        assert not store.is_expired(now - 40)
        assert (len(store.index), store.index.samples) == (2, 2)
        store.journal.compact().result(60)
        assert len(records(tmp_path)) == 2
        assert {"q": 1} in [record["call"] for record in records(tmp_path)]


def test_expiry_while_open(tmp_path: Path) -> None:
    """Samples that are too old go, though nobody asks for them."""
    with limited(tmp_path, ttl=0.2) as store:
        fill(store, *range(10))
        generation, filled_at = store.generation, time.time()
        until(lambda: not there(store, 1))
        assert store.generation > generation
        until(lambda: time.time() > filled_at + 0.2)  # the others have expired, too
        fill(store, 10)
        fill(store, 11)
        assert len(store.index) == 2


def test_expiry_within_a_pool(tmp_path: Path) -> None:
    """Samples that are too old go, wherever they stand in a pool."""
    now = time.time()
    times = (now, now - 100, now + 3600, now - 10)
    with limited(tmp_path, ttl=50) as store:
        for n, at in enumerate(times):
            store.append(Addition(A, "chat", b"{}", [sample(b'{"x":%d}' % n, at)]))
        assert [s.answer for s in pool(store, A)] == [b'{"x":0}', b'{"x":3}']
        assert store.index.samples == store.memory.samples == 2
        store.append(Addition(A, "chat", b"{}", [sample(b'{"x":4}', now)], since=inf))
        store.append(Addition(A, "chat", b"{}", [sample(b'{"x":5}', now)]))
        answers = [b'{"x":4}', b'{"x":3}', b'{"x":5}']
        assert [s.answer for s in pool(store, A)] == answers
    with limited(tmp_path, ttl=50, memory=1) as store:
        assert [s.answer for s in pool(store, A)] == answers
