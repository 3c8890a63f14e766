"""Plans: which samples of a call are stored, which are short, and how new ones are stored.

Pure but for the pools it is given. A call that wants n takes the first n samples of a pool. Prompts
that come twice in one call take turns, so that `["a", "a"]` gets two different samples, as it would
from SGLang.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from sglang_cached_addon.core import policy
from sglang_cached_addon.core.cache import Addition, Sample, Store, counts, slots
from sglang_cached_addon.core.call import Call, Generation, Recorded
from sglang_cached_addon.core.places import written

LARGE_BYTES = 1 << 20
"""How many bytes of samples are put together on the event loop, in some 20 ms."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which samples of a call are stored, and how many are not."""

    call: Call
    keys: tuple[bytes, ...]
    """The key of each item's pool."""
    stored: tuple[tuple[Sample, ...], ...]
    """For each item, its stored samples: `call.n` at most."""
    places: tuple[Sequence[int], ...] = ()
    """For each item, the places of its samples in their pool: of those that are stored, then of
    those that are missing, as far as that is known beforehand."""
    sizes: Mapping[bytes, int] | None = None
    """How many samples each pool has, of a call of a run: the missing ones come behind them."""

    @property
    def shortfalls(self) -> tuple[int, ...]:
        """For each item, how many samples are missing."""
        return tuple(self.call.n - len(samples) for samples in self.stored)

    @property
    def have(self) -> int:
        """How many samples are stored, of the `call.total` that are wanted."""
        return sum(len(samples) for samples in self.stored)

    @property
    def needs(self) -> dict[bytes, int]:
        """How many samples each pool that is too small would have to have."""
        short = {key for key, lack in zip(self.keys, self.shortfalls, strict=True) if lack}
        if not short:
            return {}
        if self.sizes is not None:
            lacks: Counter[bytes] = Counter()
            for key, lack in zip(self.keys, self.shortfalls, strict=True):
                lacks[key] += lack
            return {key: self.sizes[key] + lack for key, lack in lacks.items() if lack}
        times = Counter(self.keys)
        return {key: self.call.n * times[key] for key in dict.fromkeys(self.keys) if key in short}

    @property
    def is_large(self) -> bool:
        """Whether an answer takes so long to put together that others would wait for it: whoever
        gives it does that beside the event loop."""
        if self.call.total >= policy.LARGE_SAMPLES:
            return True
        is_written = self.call.total > 1 or self.call.stream is not None or self.call.batched
        return is_written and sum(len(sample.answer) for sample in self.samples()) > LARGE_BYTES

    def samples(self) -> Iterator[Sample]:
        """The stored samples of all items."""
        return (sample for pool in self.stored for sample in pool)

    def with_samples(self, samples: Iterable[tuple[int, Sample]]) -> Plan:
        """The plan with more samples, each given with the number of its item."""
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
        """The plan with what the store has of these pools by now."""
        fresh = plan(self.call, self.keys, store, since, more)
        pairs = zip(self.keys, fresh.stored, self.stored, strict=True)
        stored = tuple(new if key in keys else old for key, new, old in pairs)
        return replace(self, stored=stored, places=fresh.places)


More = Callable[[bytes, bool], Sequence[Sample]]
"""A function that gives samples to add behind those of a pool; it is told whether the pool is
empty."""


def plan(
    call: Call,
    keys: tuple[bytes, ...],
    store: Store,
    since: float = -inf,
    more: More | None = None,
) -> Plan:
    """The samples that the store has for a call, of those stored at `since` or later."""

    def get(key: bytes) -> Sequence[Sample]:
        pool = store.get(key)
        if more and (new := more(key, not pool)):
            pool = [*pool, *new]
        return pool

    n = call.n
    if len(keys) == 1 and since == -inf:
        return Plan(call, keys, (tuple(get(keys[0])[:n]),), (range(n),))
    pools: dict[bytes, tuple[Sequence[Sample], Sequence[int]]] = {}
    taken: dict[bytes, int] = {}
    stored, places = [], []
    for key in keys:
        if key not in pools:
            pools[key] = _counting(get(key), store, since, n * len(keys))
        samples, numbers = pools[key]
        start = taken.get(key, 0)
        taken[key] = start + n
        stored.append(tuple(samples[start : start + n]))
        places.append(numbers[start : start + n])
    return Plan(call, keys, tuple(stored), tuple(places))


def _counting(
    pool: Sequence[Sample], store: Store, since: float, most: int
) -> tuple[Sequence[Sample], Sequence[int]]:
    """The samples of a pool that count, and their places, with those that so many more will
    take."""
    if since == -inf:
        return pool, range(len(pool) + most)
    now = store.now
    counting = [place for place, s in enumerate(pool) if counts(s.stored_at, since, now)]
    coming = slots([sample.stored_at for sample in pool], most, since, now)
    return [pool[place] for place in counting], [*counting, *coming]


def samples(
    generations: Iterable[Generation], now: float, seconds: float, origins: Sequence[bytes] = ()
) -> list[tuple[int, Sample]]:
    """The samples that are stored of what upstream generated, each with the number of its item;
    `origins` are theirs for each item, where they have any."""
    new = [(g.item, Sample(g.answer, now, seconds, g.tokens, g.deltas)) for g in generations]
    return [(i, s._replace(origin=origins[i])) for i, s in new] if origins else new


PIECE = 1 << 20
"""How many bytes are stored in one go, unless one sample is larger. It takes 2 ms, in which nothing
else runs."""


def additions(
    plan: Plan,
    new: Iterable[tuple[int, Sample]],
    dialect: str,
    raw: bytes = b"",
    since: float = -inf,
) -> Iterator[Addition]:
    """New samples as they are stored, pool by pool, in the order of the call: each addition in one
    go. The rest is as in `Addition`."""
    new = list(new)
    contents = {plan.keys[item]: plan.call.items[item] for item, _ in new}
    for key, pool in by_key(plan, new).items():
        begun, size, counting = 0, 0, since
        for end, sample in enumerate(pool, 1):
            size += len(sample.answer) + len(sample.deltas)
            if size < PIECE and end < len(pool):
                continue
            some, is_last = pool[begun:end], end == len(pool)
            yield Addition(key, dialect, contents[key], some, raw, counting, is_last)
            # A later one must not replace the samples of an earlier one.
            begun, size, counting = end, 0, min(since, pool[0].stored_at)


def by_key(plan: Plan, new: Iterable[tuple[int, Sample]]) -> dict[bytes, list[Sample]]:
    """New samples by pool, in the order of the call."""
    found: dict[bytes, list[Sample]] = {}
    for item, sample in new:
        found.setdefault(plan.keys[item], []).append(sample)
    return found


def tokens(plan: Plan, new: Iterable[tuple[int, Sample]]) -> int:
    """How many completion tokens a whole answer has, of stored samples and of new ones."""
    whole = [*plan.samples(), *(sample for _, sample in new)]
    return sum(sample.tokens for sample in whole)


def recorded(plan: Plan, generations: Iterable[Generation] = ()) -> list[list[Recorded]]:
    """For each item its samples: those that are stored, then the new ones."""
    whole: list[list[Recorded]] = [list(pool) for pool in plan.stored]
    for generation in generations:
        whole[generation.item].append(generation)
    return whole


MAX_SHOWN = 2000
"""How many bytes `X-Cache-Sample` may have: clients have bounds, too."""


def shown_places(plan: Plan) -> bytes:
    """The places of an answer's samples, prompt by prompt, as `X-Cache-Sample` has them; empty if
    that would be too long."""
    if len(plan.places) > MAX_SHOWN // 2 or any(-1 in places for places in plan.places):
        return b""
    shown = ",".join(written(places) for places in plan.places).encode()
    return shown if len(shown) <= MAX_SHOWN else b""


def stored_choices(plan: Plan) -> list[int]:
    """The numbers of the choices that are stored, in the order of `Plan.samples`."""
    n = plan.call.n
    return [i * n + j for i, pool in enumerate(plan.stored) for j in range(len(pool))]


def answers(plan: Plan) -> list[tuple[bytes, ...]]:
    """For each item, the answers of its stored samples."""
    return [tuple([sample.answer for sample in pool]) for pool in plan.stored]
