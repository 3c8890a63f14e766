"""Pools in memory, and their counts."""

from __future__ import annotations

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.store.memory import Memory

A, B = b"a" * 32, b"b" * 32


def sample(answer: bytes) -> Sample:
    return Sample(answer, 1.5, 0.25, 3)


def test_unknown_key() -> None:
    """An empty cache would claim to have an answer."""
    assert len(Memory().get(A)) == 0
    assert len(Memory()) == 0


def test_order() -> None:
    """A client would get other samples of its n than the time before."""
    memory = Memory()
    memory.append(A, "chat", [sample(b"1"), sample(b"2")])
    memory.append(B, "chat", [sample(b"x")])
    memory.append(A, "chat", [sample(b"3")])
    assert [s.answer for s in memory.get(A)] == [b"1", b"2", b"3"]
    assert [s.answer for s in memory.get(B)] == [b"x"]


def test_appended_list_is_not_kept() -> None:
    """Whoever reuses a list would change what is stored."""
    memory = Memory()
    samples = [sample(b"1")]
    memory.append(A, "chat", samples)
    samples.append(sample(b"2"))
    assert [s.answer for s in memory.get(A)] == [b"1"]


def test_counts() -> None:
    """`/cache/info` would tell sizes that are not there."""
    memory = Memory()
    memory.append(A, "chat", [sample(b"12"), sample(b"345")])
    memory.append(A, "chat", [sample(b"6")])
    memory.append(B, "generate", [sample("é".encode())])
    assert (len(memory), memory.samples, memory.bytes) == (2, 4, 8)
    assert memory.by_dialect == {"chat": 3, "generate": 1}


def test_clear() -> None:
    """A cleared cache would go on answering, or counting what it has no more."""
    memory = Memory()
    memory.append(A, "chat", [sample(b"12")])
    memory.clear()
    assert len(memory.get(A)) == 0
    assert (len(memory), memory.samples, memory.bytes, memory.by_dialect) == (0, 0, 0, {})
    memory.append(A, "generate", [sample(b"345")])
    assert (len(memory), memory.samples, memory.bytes) == (1, 1, 3)
    assert memory.by_dialect == {"generate": 1}
