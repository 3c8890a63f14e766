"""Pools in memory, and their counts."""

from __future__ import annotations

import random
from math import inf

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.memory import MemoryPools
from tests.tables import each

A, B = b"a" * 32, b"b" * 32
RAW = b"r" * 16


def sample(answer: bytes, at: float = 1.5, deltas: bytes = b"") -> Sample:
    return Sample(answer, at, 0.25, 3, deltas)


def answers(memory: MemoryPools, key: bytes = A) -> list[bytes]:
    return [s.answer for s in memory.get(key)]


def test_unknown_key() -> None:
    """Of a key that is not there, there is nothing."""
    assert len(MemoryPools().get(A)) == 0
    assert len(MemoryPools()) == 0


def test_order() -> None:
    """A pool is in the order in which its samples came."""
    memory = MemoryPools()
    memory.append(Addition(A, "chat", b"", [sample(b"1"), sample(b"2")]))
    memory.append(Addition(B, "chat", b"", [sample(b"x")]))
    memory.append(Addition(A, "chat", b"", [sample(b"3")]))
    assert answers(memory) == [b"1", b"2", b"3"]
    assert answers(memory, B) == [b"x"]


def test_appended_list_is_not_kept() -> None:
    """A list that is changed after it was added changes nothing."""
    memory = MemoryPools()
    samples = [sample(b"1")]
    memory.append(Addition(A, "chat", b"", samples))
    samples.append(sample(b"2"))
    assert answers(memory) == [b"1"]


def test_counts() -> None:
    """Samples, bytes and dialects are counted."""
    memory = MemoryPools()
    memory.append(Addition(A, "chat", b"", [sample(b"12"), sample(b"345", deltas=b"[1]")]))
    memory.append(Addition(A, "chat", b"", [sample(b"6")]))
    memory.append(Addition(B, "generate", b"", [sample("é".encode())]))
    assert (len(memory), memory.samples, memory.bytes) == (2, 4, 11)
    assert memory.by_dialect == {"chat": 3, "generate": 1}


def test_clear() -> None:
    """After a clear there is nothing, and nothing is counted."""
    memory = MemoryPools()
    memory.append(Addition(A, "chat", b"", [sample(b"12")], RAW))
    memory.clear()
    assert len(memory.get(A)) == 0
    assert memory.find(RAW) is None
    assert (len(memory), memory.samples, memory.bytes, memory.by_dialect) == (0, 0, 0, {})
    memory.append(Addition(A, "generate", b"", [sample(b"345")]))
    assert (len(memory), memory.samples, memory.bytes) == (1, 1, 3)
    assert memory.by_dialect == {"generate": 1}


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
    memory = MemoryPools()
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
    memory = MemoryPools()
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
    memory = MemoryPools(limit=2000, evicted=gone.append)
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


def test_names_of_bodies_follow_the_first_sample() -> None:
    """The name of a body leads to its pool, also when samples were replaced."""
    memory = MemoryPools()
    memory.append(Addition(A, "chat", b"", [sample(b"1", 1.0)], RAW))
    memory.append(Addition(A, "chat", b"", [sample(b"2", 2.0)], since=2.0))
    assert memory.find(RAW) == A
    assert answers(memory) == [b"2"]


def test_one_key_of_two_dialects() -> None:
    """Counts are never below nothing."""
    memory = MemoryPools()
    memory.append(Addition(A, "chat", b"", [sample(b"1", 1.0)]))
    memory.append(Addition(A, "chbt", b"", [sample(b"2", 2.0)], since=2.0))
    assert memory.by_dialect == {"chat": 1}
    memory.clear(b"")
    assert memory.by_dialect == {}


# Models


def key(model: bytes, n: int) -> bytes:
    return model * 8 + b"%024d" % n


def test_by_model() -> None:
    """Samples are counted by model."""
    memory = MemoryPools()
    assert memory.by_model() == {}
    memory.append(Addition(key(b"x", 1), "chat", b"", [sample(b"1", 1.0), sample(b"2", 2.0)]))
    memory.append(Addition(key(b"x", 2), "generate", b"", [sample(b"1")]))
    memory.append(Addition(key(b"y", 1), "chat", b"", [sample(b"1")]))
    assert memory.by_model() == {(b"x" * 8).hex(): 3, (b"y" * 8).hex(): 1}
    memory.append(Addition(key(b"x", 1), "chat", b"", [sample(b"3", 3.0)], since=3.0))
    assert memory.by_model() == {(b"x" * 8).hex(): 3, (b"y" * 8).hex(): 1}
    memory.clear(b"x")
    assert memory.by_model() == {(b"y" * 8).hex(): 1}


def test_clear_of_a_part() -> None:
    """A clear of a part removes just that, with its names and counts."""
    memory = MemoryPools()
    memory.append(Addition(key(b"x", 1), "chat", b"", [sample(b"12", deltas=b"[2]")], b"1" * 16))
    memory.append(Addition(key(b"x", 2), "generate", b"", [sample(b"345")], b"2" * 16))
    memory.append(Addition(key(b"y", 1), "chat", b"", [sample(b"6789")], b"3" * 16))
    memory.clear(b"x" * 8)
    assert (len(memory), memory.samples, memory.bytes) == (1, 1, 4)
    assert memory.by_dialect == {"chat": 1}
    assert [memory.find(b"%d" % n * 16) for n in (1, 2, 3)] == [None, None, key(b"y", 1)]
    assert (memory.generation, memory.clears) == (1, 1)


def test_every_clear_counts() -> None:
    """Each clear counts, also one that removes nothing."""
    memory = MemoryPools()
    memory.clear()
    memory.clear(b"?")
    assert (memory.generation, memory.clears) == (2, 2)


def test_counts_stay_right() -> None:
    """Whatever happens in whatever order, the counts are those of what is there."""
    rng = random.Random(0)
    memory, everything = MemoryPools(), [key(model, n) for model in (b"x", b"y") for n in range(4)]
    for now in range(2000):
        at = rng.choice(everything)
        if rng.random() < 0.02:
            model = rng.choice([b"x", b"y"])
            memory.clear(rng.choice([None, model]))
        else:
            new = [sample(b"x" * rng.randrange(9), float(now))] * rng.randrange(1, 4)
            since = rng.choice([-inf, inf, now - rng.randrange(40)])
            memory.append(Addition(at, "chat" if at < b"y" else "generate", b"", new, since=since))
        pools = [memory.get(k) for k in everything]
        assert memory.samples == sum(map(len, pools)) == sum(memory.by_model().values())
        assert memory.samples == sum(memory.by_dialect.values())
        assert memory.bytes == sum(len(s.answer) for pool in pools for s in pool)
        assert len(memory) == sum(map(bool, pools))
