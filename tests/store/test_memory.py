"""Pools in memory, and their counts."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from math import inf

from sglang_cached_addon.core.cache import Addition, Sample, slots
from sglang_cached_addon.store.memory import MemoryStore
from tests.tables import each

A, B = b"a" * 32, b"b" * 32
RAW = b"r" * 16


def sample(answer: bytes, at: float = 1.5, deltas: bytes = b"") -> Sample:
    return Sample(answer, at, 0.25, 3, deltas)


def answers(memory: MemoryStore, key: bytes = A) -> list[bytes]:
    return [s.answer for s in memory.get(key)]


# Samples that are replaced


@each(
    ("since", "pool"),
    [
        (-inf, [b"1", b"2", b"3", b"new", b"newer"]),
        (1.0, [b"1", b"2", b"3", b"new", b"newer"]),
        (1.5, [b"new", b"2", b"3", b"newer"]),
        (2.5, [b"new", b"newer", b"3"]),
        (9.0, [b"new", b"newer", b"3"]),
        (inf, [b"new", b"newer", b"3"]),
    ],
)
def test_since(since: float, pool: list[bytes]) -> None:
    """New samples take the places of those that do not count, and come behind the others."""
    memory = MemoryStore()
    memory.append(Addition(A, "chat", b"", [sample(b"%d" % n, float(n)) for n in (1, 2, 3)]))
    memory.append(Addition(B, "chat", b"", [sample(b"other", 0.0)]))
    memory.append(
        Addition(A, "chat", b"", [sample(b"new", 4.0), sample(b"newer", 4.0)], since=since)
    )
    assert answers(memory) == pool
    assert answers(memory, B) == [b"other"]
    assert (memory.samples, memory.by_dialect) == (len(pool) + 1, {"chat": len(pool) + 1})
    assert memory.bytes == len(b"".join(pool)) + len(b"other")
    # Only where something went does anybody have to look again.
    assert (memory.generation, memory.clears) == (0 if len(pool) == 5 else 1, 0)


def test_expiry() -> None:
    """Samples that are too old, or of the future, go, wherever they stand."""
    memory = MemoryStore()
    times = (9.0, 1.0, 10.0, 99.0)
    memory.append(Addition(A, "chat", b"", [sample(b"%d" % at, at) for at in times]))
    assert not memory.expire(A, 1.0, 99.0)
    assert memory.expire(A, 5.0, 20.0)
    assert answers(memory) == [b"9", b"10"]
    assert (memory.samples, memory.bytes, memory.generation) == (2, 3, 1)
    assert not memory.expire(A, 5.0, 20.0)
    assert memory.expire(A, 50.0, 60.0)
    assert (len(memory), memory.samples, memory.by_dialect) == (0, 0, {})
    assert not memory.expire(A, 50.0, 60.0)


def test_a_pool_that_grows_is_not_what_makes_room() -> None:
    """A pool that grows does not make room for itself, and others go as a whole."""
    gone: list[bytes] = []
    memory = MemoryStore(limit=2000, evicted=gone.append)
    memory.append(Addition(A, "chat", b"", [sample(b"1")]))
    memory.append(Addition(B, "chat", b"", [sample(b"x" * 800)]))
    memory.append(Addition(A, "chat", b"", [sample(b"2" * 900)]))
    assert answers(memory) == [b"1", b"2" * 900]
    assert gone == [B]
    for n in range(9):  # however much it is
        memory.append(Addition(A, "chat", b"", [sample(b"%d" % n * 900)]))
    assert (len(answers(memory)), answers(memory)[0]) == (11, b"1")
    memory.append(Addition(B, "chat", b"", [sample(b"x")]))
    assert gone == [B, A]
    assert (len(memory), memory.bytes) == (1, 1)


def test_against_lists() -> None:
    """Whatever happens in whatever order, pools, names and counts are those of plain lists, while
    clears are under way, too."""
    asyncio.run(against_lists())


async def against_lists() -> None:
    rng, memory = random.Random(0), MemoryStore()
    keys = [model * 8 + b"%024d" % n for model in (b"x", b"y") for n in range(4)]
    lists: dict[bytes, list[Sample]] = {key: [] for key in keys}
    names: dict[bytes, bytes] = {}
    for now in range(2000):
        key, raw = rng.choice(keys), b"%016d" % now
        if rng.random() < 0.02:
            model, others = rng.choice([None, b"x", b"y" * 8, b"?"]), rng.random() < 0.5
            before = memory.generation, memory.clears
            memory.clear(model, others=others)
            assert (memory.generation, memory.clears) == (before[0] + 1, before[1] + 1)
            for one in keys:
                if model is None or one.startswith(model) is not others:
                    lists[one].clear()
        else:
            new = [sample(b"x" * rng.randrange(9), float(now), b"[]")] * rng.randrange(1, 4)
            since = rng.choice([-inf, inf, now - rng.randrange(40)])
            dialect, pool = "chat" if key < b"y" else "generate", lists[key]
            memory.append(Addition(key, dialect, b"", new, raw, since=since))
            names[raw] = key
            if rng.random() < 0.1:
                await asyncio.sleep(0)
            for place in slots([one.stored_at for one in pool], len(new), since, inf):
                pool[place : place + 1] = new[:1]
            new.clear()  # which is the caller's
        names = {raw: key for raw, key in names.items() if lists[key]}
        assert [list(memory.get(key)) for key in keys] == list(lists.values())
        assert memory.find(raw) == names.get(raw)
        assert len(memory) == sum(map(bool, lists.values()))
        samples = [one for pool in lists.values() for one in pool]
        assert (memory.samples, sum(memory.by_dialect.values())) == (len(samples),) * 2
        assert sum(memory.by_model().values()) == len(samples)
        assert memory.bytes == sum(len(one.answer) + 2 for one in samples)
    for raw in (b"%016d" % now for now in range(2000)):
        assert memory.find(raw) == names.get(raw)


def test_one_key_of_two_dialects() -> None:
    """Counts are never below nothing."""
    memory = MemoryStore()
    memory.append(Addition(A, "chat", b"", [sample(b"1", 1.0)]))
    memory.append(Addition(A, "chbt", b"", [sample(b"2", 2.0)], since=2.0))
    assert memory.by_dialect == {"chat": 1}
    memory.clear()
    assert (memory.by_dialect, len(memory.get(A))) == ({}, 0)


def test_expiry_without_a_folder() -> None:
    """Samples that are too old are not given, though there is no folder."""
    now = time.time()
    store = MemoryStore(ttl=100.0)
    store.append(
        Addition(b"a" * 32, "chat", b"", [Sample(b"{}", at, 0.5, 3) for at in (now - 200, now)])
    )
    generation = store.generation
    assert [sample.stored_at for sample in store.get(b"a" * 32)] == [now]
    assert store.generation > generation
    assert store.is_expired(now - 101)
    assert not MemoryStore().is_expired(now - 101)


def test_calls() -> None:
    """What was asked is kept where it is to be had from nowhere else, and counts; it is gone with
    its pool."""
    for keeps in (True, False):
        store = MemoryStore(keeps_calls=keeps)
        store.append(Addition(b"k" * 32, "chat", b'{"q":1}', [Sample(b"{}", 1.0, 0.0, 1)]))
        store.append(Addition(b"k" * 32, "chat", b"", [Sample(b"{}", 2.0, 0.0, 1)]))
        found = store.peek(b"k" * 32)
        assert found and found[:2] == ("chat", b'{"q":1}' if keeps else b"")
        assert [sample.stored_at for sample in found[2]] == [1.0, 2.0]
        assert store.bytes == 4 + len(found[1])
        before = store.cleared([b"k" * 32]), store.cleared([b"o" * 32]), store.clears
        store.delete(b"k" * 32).result()
        assert store.peek(b"k" * 32) is None
        assert (store.bytes, store.samples, len(store)) == (0, 0, 0)
        assert store.cleared([b"k" * 32]) > before[0] and store.clears > before[2]
        assert store.cleared([b"o" * 32]) == before[1]


def test_garbage_collection() -> None:
    """The garbage collector has nothing to look at in what is kept, so that it holds nobody up,
    however much that is."""
    memory = MemoryStore(keeps_calls=True)

    def seen() -> int:
        for _ in range(3):  # what is in something else is found to be harmless first
            gc.collect()
        return len(gc.get_objects())

    before = seen()
    for i in range(1000):
        name = b"%032d" % i
        memory.append(Addition(name, "chat", b"{}", [sample(b"x")] * (1 + i % 3), name))
    assert len(memory) == 1000
    assert seen() < before + 100
