"""Plan and commit: which samples of a call are stored, which are short, what becomes of new ones.

Pure but for the pools it is given. A pool is the ordered samples of one key; a call that
wants n takes the first n. Prompts that come twice in one call take turns, so that
`["a", "a"]` gets two different samples, as it would from SGLang.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sglang_cached_addon.dialects.base import Call, Generation, Recorded


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored generation."""

    answer: bytes
    """Compact JSON: the API's whole answer for `n=1`."""
    stored_at: float
    """Unix time in seconds."""
    seconds: float
    """How long the upstream call took that gave it."""
    tokens: int
    """Completion tokens."""
    deltas: bytes = b""
    """As `Generation.deltas`."""


class Store(Protocol):
    """Where pools live. Methods return at once; what is slow happens elsewhere."""

    @property
    def generation(self) -> int:
        """Rises when samples are removed. Within one generation, pools only grow at their end."""

    def get(self, key: bytes) -> Sequence[Sample]:
        """The pool of this key, oldest first; empty if there is none."""

    def find(self, raw: bytes) -> bytes | None:
        """The key of the pool whose first sample answers a body of this name."""

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
    ) -> None:
        """Adds to a pool. `content` is the canonical call, kept for people who read the journal;
        `raw`, if any, the name of a body that the pool's first sample answers."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call gets from the store, and what has to be fetched."""

    call: Call
    keys: tuple[bytes, ...]
    """One per item."""
    stored: tuple[tuple[Sample, ...], ...]
    """At most `call.n` per item."""

    @property
    def shortfalls(self) -> tuple[int, ...]:
        """Samples to fetch, per item."""
        return tuple(self.call.n - len(samples) for samples in self.stored)

    @property
    def have(self) -> int:
        """Stored samples, of `call.total` wanted."""
        return sum(len(samples) for samples in self.stored)

    def samples(self) -> Iterator[Sample]:
        """The stored samples of all items."""
        return (sample for pool in self.stored for sample in pool)


def plan(call: Call, keys: tuple[bytes, ...], store: Store) -> Plan:
    """Takes what the store has for a call."""
    if len(keys) == 1:
        return Plan(call, keys, (tuple(store.get(keys[0])[: call.n]),))
    taken: dict[bytes, int] = {}
    stored = []
    for key in keys:
        start = taken.get(key, 0)
        samples = tuple(store.get(key)[start : start + call.n])
        taken[key] = start + len(samples)
        stored.append(samples)
    return Plan(call, keys, tuple(stored))


def commit(
    plan: Plan,
    dialect: str,
    generations: Sequence[Generation],
    store: Store,
    *,
    now: float,
    seconds: float,
    raw: bytes = b"",
) -> None:
    """Stores what upstream generated, in the order of the call; `raw` as the store has it."""
    by_key: dict[bytes, list[Sample]] = {}
    contents: dict[bytes, bytes] = {}
    for generation in generations:
        key = plan.keys[generation.item]
        contents[key] = plan.call.items[generation.item]
        sample = Sample(generation.answer, now, seconds, generation.tokens, generation.deltas)
        by_key.setdefault(key, []).append(sample)
    for key, samples in by_key.items():
        store.append(key, dialect, contents[key], samples, raw)


def recorded(plan: Plan, generations: Sequence[Generation] = ()) -> list[list[Recorded]]:
    """`call.n` samples per item: the stored ones first, then the new ones."""
    whole: list[list[Recorded]] = [list(pool) for pool in plan.stored]
    for generation in generations:
        whole[generation.item].append(generation)
    return whole


def answers(plan: Plan, generations: Sequence[Generation] = ()) -> list[list[bytes]]:
    """The answers of `recorded`."""
    return [[sample.answer for sample in pool] for pool in recorded(plan, generations)]
