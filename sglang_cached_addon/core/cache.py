"""Plan and commit: which samples of a call are stored, which are short, what becomes of new ones.

Pure but for the pools it is given. A pool is the ordered samples of one key; a call that
wants n takes the first n. Prompts that come twice in one call take turns, so that
`["a", "a"]` gets two different samples, as it would from SGLang.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from sglang_cached_addon.core.call import Call, Generation, Recorded


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


SKEW = 5.0
"""Seconds that clocks may differ by. What is dated further ahead is of a clock that was wrong, and
of no age that could be told."""


def counts(stored_at: float, since: float, now: float) -> bool:
    """Whether a sample of that time was stored since then; one of the future was not."""
    return since == -inf or since <= stored_at <= now + SKEW


def slots(times: Sequence[float], count: int, since: float, now: float) -> list[int]:
    """Which places of a pool so many new samples take, in ascending order: those of samples that do
    not count, and what is more the ones behind its end. `times`: when its samples were stored."""
    if since == -inf:
        return list(range(len(times), len(times) + count))
    stale = [place for place, at in enumerate(times) if not counts(at, since, now)][:count]
    return [*stale, *range(len(times), len(times) + count - len(stale))]


class Lease(Protocol):
    """The right to fill some pools, which no other proxy has meanwhile."""

    def release(self) -> None:
        """What was to be stored is stored, or will not be. Returns at once; what was appended
        before comes to others before this does."""


@dataclass(frozen=True, slots=True)
class Brought:
    """What came of looking further than what is at hand."""

    lease: Lease | None = None
    is_shared: bool = False
    """Another proxy had the lease, and has let go of it: there may be more to bring by now."""


class Store(Protocol):
    """Where pools live. Methods return at once; what is slow happens elsewhere."""

    @property
    def generation(self) -> int:
        """Rises when samples are removed. Within one generation, pools only grow at their end."""

    @property
    def clears(self) -> int:
        """Rises when somebody clears the store, or a part of it."""

    @property
    def now(self) -> float:
        """Unix seconds."""

    def is_expired(self, stored_at: float) -> bool:
        """Whether a sample of that time is no more."""

    def touch(self, keys: Sequence[bytes]) -> None:
        """Pools were used, as `get` notes by itself."""

    def get(self, key: bytes) -> Sequence[Sample]:
        """What is at hand of the pool of this key, oldest first: all or nothing of it, or its
        beginning."""

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        """Brings what is not at hand of these pools, up to so many samples each; None if there is
        nothing to wait for. Who `claims` what is still short then gets a lease for it, unless
        others have one: those are waited for."""

    def find(self, raw: bytes) -> bytes | None:
        """The key of the pool whose first sample answers a body of this name."""

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float = -inf,
    ) -> bool:
        """Adds to a pool. `content` is the canonical call, kept for people who read the journal;
        `raw`, if any, the name of a body that the pool's first sample answers. In the order of the
        pool, samples that do not count (see `counts`) give their places to as many new ones; what
        is new beyond those comes behind the others. False if it cannot be kept: nothing has
        changed, then."""

    def room(self) -> Awaitable[None] | None:
        """To be waited for by who has much to store; None if there is room, or if waiting would
        be for nothing."""

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be kept just now, or in a moment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call has of its samples, and what it lacks."""

    call: Call
    keys: tuple[bytes, ...]
    """One per item."""
    stored: tuple[tuple[Sample, ...], ...]
    """At most `call.n` per item."""

    @property
    def shortfalls(self) -> tuple[int, ...]:
        """Samples that are missing, per item."""
        return tuple(self.call.n - len(samples) for samples in self.stored)

    @property
    def have(self) -> int:
        """Samples that are there, of `call.total` wanted."""
        return sum(len(samples) for samples in self.stored)

    @property
    def needs(self) -> dict[bytes, int]:
        """The pools that are too small, and how many samples each would have to have."""
        short = {key for key, lack in zip(self.keys, self.shortfalls, strict=True) if lack}
        if not short:
            return {}
        times = Counter(self.keys)
        return {key: self.call.n * times[key] for key in dict.fromkeys(self.keys) if key in short}

    def samples(self) -> Iterator[Sample]:
        """Those that are there, of all items."""
        return (sample for pool in self.stored for sample in pool)

    def with_samples(self, samples: Iterable[tuple[int, Sample]]) -> Plan:
        """With more samples, each given with the number of its item."""
        pools = [list(pool) for pool in self.stored]
        for item, sample in samples:
            pools[item].append(sample)
        return replace(self, stored=tuple(tuple(pool[: self.call.n]) for pool in pools))

    def again(
        self,
        keys: Collection[bytes],
        store: Store,
        since: float = -inf,
        more: More | None = None,
    ) -> Plan:
        """With what the store has of these pools by now."""
        fresh = plan(self.call, self.keys, store, since, more)
        pairs = zip(self.keys, fresh.stored, self.stored, strict=True)
        return replace(self, stored=tuple(new if key in keys else old for key, new, old in pairs))


More = Callable[[bytes, bool], Sequence[Sample]]
"""What is to come behind a pool's samples, and is at hand; told whether that is empty."""


def plan(
    call: Call,
    keys: tuple[bytes, ...],
    store: Store,
    since: float = -inf,
    more: More | None = None,
) -> Plan:
    """Takes what is at hand for a call, of samples stored at `since` or later."""

    def get(key: bytes) -> Sequence[Sample]:
        pool = store.get(key)
        if more and (new := more(key, not pool)):
            pool = [*pool, *new]
        return _counting(pool, store, since)

    if len(keys) == 1:
        return Plan(call, keys, (tuple(get(keys[0])[: call.n]),))
    pools: dict[bytes, Sequence[Sample]] = {}
    taken: dict[bytes, int] = {}
    stored = []
    for key in keys:
        if key not in pools:
            pools[key] = get(key)
        start = taken.get(key, 0)
        samples = tuple(pools[key][start : start + call.n])
        taken[key] = start + len(samples)
        stored.append(samples)
    return Plan(call, keys, tuple(stored))


def _counting(pool: Sequence[Sample], store: Store, since: float) -> Sequence[Sample]:
    if since == -inf:
        return pool
    now = store.now
    return [sample for sample in pool if counts(sample.stored_at, since, now)]


def samples(
    generations: Iterable[Generation], now: float, seconds: float
) -> list[tuple[int, Sample]]:
    """What upstream generated, as it is kept, each with the number of its item."""
    return [(g.item, Sample(g.answer, now, seconds, g.tokens, g.deltas)) for g in generations]


def commit(
    plan: Plan,
    dialect: str,
    new: Iterable[tuple[int, Sample]],
    store: Store,
    *,
    raw: bytes = b"",
    since: float = -inf,
) -> bool:
    """Stores new samples, in the order of the call; `raw` and `since` as the store has them. False
    if not all of them can be kept."""
    kept = [
        store.append(one.key, dialect, one.content, one.samples, raw, since=one.since)
        for one in pieces(plan, new, since)
    ]
    return all(kept)


PIECE = 1 << 20
"""Bytes that are stored in one go, unless one sample is more; others wait for 2 ms meanwhile."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples of a pool that are stored in one go."""

    key: bytes
    content: bytes
    samples: Sequence[Sample]
    since: float
    is_last: bool
    """Of its pool."""


def pieces(plan: Plan, new: Iterable[tuple[int, Sample]], since: float = -inf) -> Iterator[Piece]:
    """New samples, in the order of the call."""
    new = list(new)
    contents = {plan.keys[item]: plan.call.items[item] for item, _ in new}
    for key, pool in by_key(plan, new).items():
        begun, size, counting = 0, 0, since
        for end, sample in enumerate(pool, 1):
            size += len(sample.answer) + len(sample.deltas)
            if size < PIECE and end < len(pool):
                continue
            yield Piece(key, contents[key], pool[begun:end], counting, end == len(pool))
            # What has just been stored counts, and is not to be replaced by what comes with it.
            begun, size, counting = end, 0, min(since, pool[0].stored_at)


def by_key(plan: Plan, new: Iterable[tuple[int, Sample]]) -> dict[bytes, list[Sample]]:
    """New samples by pool, in the order of the call."""
    found: dict[bytes, list[Sample]] = {}
    for item, sample in new:
        found.setdefault(plan.keys[item], []).append(sample)
    return found


def tokens(plan: Plan, new: Iterable[tuple[int, Sample]]) -> int:
    """Completion tokens of a whole answer: of what was there, and of what is new."""
    whole = [*plan.samples(), *(sample for _, sample in new)]
    return sum(sample.tokens for sample in whole)


def recorded(plan: Plan, generations: Iterable[Generation] = ()) -> list[list[Recorded]]:
    """`call.n` samples per item: those that are there first, then the new ones."""
    whole: list[list[Recorded]] = [list(pool) for pool in plan.stored]
    for generation in generations:
        whole[generation.item].append(generation)
    return whole


def stored_choices(plan: Plan) -> list[int]:
    """Which choices of the answer are there, in the order of `Plan.samples`."""
    n = plan.call.n
    return [i * n + j for i, pool in enumerate(plan.stored) for j in range(len(pool))]


def answers(plan: Plan) -> list[list[bytes]]:
    """The answers of all samples."""
    return [[sample.answer for sample in pool] for pool in plan.stored]
