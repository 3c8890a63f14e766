"""What calls of runs hold: a `Claim` has the samples of one call, each with its place.

A call takes the lowest free places of its pools that have samples; for what it lacks, samples are
generated, and their places are taken when they have come. Knows runs and samples, and no upstream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.places import Pool, pool_of
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.runs import Log, SharedRun


class Held(NamedTuple):
    """A sample that a call has."""

    place: int
    sample: Sample
    is_new: bool
    """It was generated for this run."""
    is_marked: bool
    """Its place is taken by this."""


class Drawn:
    """What a call has that was all stored."""

    __slots__ = ("_drops", "_log", "_places", "_pools", "_rewinds", "run")

    def __init__(
        self, log: Log, run: Run, pools: Sequence[Pool], places: Sequence[Sequence[int]]
    ) -> None:
        """Takes these places of each pool, which are its lowest free ones."""
        self.run, self._log, self._pools, self._places = run, log, pools, places
        self._rewinds, self._drops = run.rewinds, len(run.places.dropped)
        run.reused += run.places.take_lowest(pools, places)
        log.note(run, pools)

    def settle(self, *, is_delivered: bool) -> None:
        """The client has got all of its answer; if not, its places are free again."""
        if is_delivered:
            return
        run = self.run
        run.reused -= sum(map(len, self._places))
        if run.rewinds != self._rewinds or run.is_over:
            return
        dropped = run.places.dropped[self._drops :]
        for pool, some in zip(self._pools, self._places, strict=True):
            for place in some if pool not in dropped else ():
                run.places.give_back(pool, place)
        self._log.note(run, self._pools)


View = Callable[[bytes], Sequence[Sample]]
"""The samples of a pool that are at hand: what is stored, and what is about to be."""


class Claim(ABC):
    """What one call of a run has: a `flights.Drawer`."""

    run: Run | SharedRun

    def __init__(self, known: Known, view: View, since: float = -inf) -> None:
        """Samples that were stored before `since` are not for this call."""
        self.known = known
        self._view = view
        self._since = since
        self._is_over = False
        self._held: tuple[list[Held], ...] = tuple([] for _ in known.keys)
        self._begun: dict[bytes, int] | None = None
        """How many samples were at hand when the call came, of pools of which it lacked some."""

    @property
    def has_new(self) -> bool:
        """Whether it has samples that were not there when it came."""
        return any(held.is_new for item in self._held for held in item)

    def lacks(self) -> dict[bytes, int]:
        """How many samples of each pool it lacks."""
        found: dict[bytes, int] = {}
        for key, item in zip(self.known.keys, self._held, strict=True):
            if lack := self.known.call.n - len(item):
                found[key] = found.get(key, 0) + lack
        return found

    def plan(self) -> Plan:
        """What it has, once it has taken what is at hand."""
        self.draw()
        stored = tuple(tuple(held.sample for held in item) for item in self._held)
        places = tuple([held.place for held in item] for item in self._held)
        return Plan(self.known.call, self.known.keys, stored, places, self.sizes())

    def sizes(self) -> dict[bytes, int]:
        """How many samples are at hand of pools of which it lacks something."""
        return {key: len(self._view(key)) for key in self.lacks()}

    async def ready(self) -> bool:
        """Takes what can only be had by waiting; whether it has waited."""
        return False

    def is_far(self) -> bool:
        """Whether pools of which it lacks something have more than what is at hand."""
        return False

    def can_draw(self) -> bool:
        """Whether what is at hand has something of what it lacks."""
        return any(next(self._free(key, self._view(key)), None) is not None for key in self.lacks())

    def draw(self) -> None:
        """Takes what it lacks of what is at hand, as far as it need not wait for that."""
        if self._is_over or self._since == inf:
            return
        for key, item in zip(self.known.keys, self._held, strict=True):
            if lack := self.known.call.n - len(item):
                samples = self._view(key)
                for place in list(islice(self._free(key, samples), lack)):
                    self._hold(key, item, place, samples[place])

    def _hold(self, key: bytes, item: list[Held], place: int, sample: Sample) -> None:
        is_marked = place >= 0 and self._take(key, place)
        self._put(key, item, place, sample, is_marked=is_marked)

    def _put(
        self, key: bytes, item: list[Held], place: int, sample: Sample, *, is_marked: bool
    ) -> None:
        is_new = self._begun is not None and not 0 <= place < self._begun.get(key, 0)
        self._count(is_new, 1)
        item.append(Held(place, sample, is_new, is_marked))

    def _count(self, is_new: bool, sign: int) -> None:
        if is_new:
            self.run.generated += sign
        else:
            self.run.reused += sign

    def generated(self, new: Iterable[tuple[bytes, Sample]], *, is_alone: bool) -> None:
        """Takes samples that were generated for this call, and maybe for others: each is given with
        the key of its pool. They are at hand by now, unless they are not to be stored. `is_alone`:
        others may have filled these pools meanwhile."""
        if self._is_over:
            return
        for key, sample in new:
            pairs = zip(self.known.keys, self._held, strict=True)
            lacking = (h for k, h in pairs if k == key and len(h) < self.known.call.n)
            if (item := next(lacking, None)) is not None:
                samples = self._view(key)
                places = reversed(range(len(samples)))
                self._hold(key, item, next((k for k in places if samples[k] is sample), -1), sample)

    def settle(self, *, is_delivered: bool) -> None:
        """The client has got all of its answer; if not, its places are free again."""
        self._is_over = True
        if not is_delivered:
            for held in (held for item in self._held for held in item):
                self._count(held.is_new, -1)
        self._end(is_delivered=is_delivered)
        for item in self._held:
            item.clear()

    @abstractmethod
    def _free(self, key: bytes, samples: Sequence[Sample]) -> Iterator[int]:
        """The free places of a pool that have samples which are for this call."""

    @abstractmethod
    def _take(self, key: bytes, place: int) -> bool:
        """Takes a place; False if it is taken already."""

    @abstractmethod
    def _end(self, *, is_delivered: bool) -> None:
        """All that was taken was delivered, or is free again."""


class LocalClaim(Claim):
    """What a call has of a run that is this proxy's alone."""

    run: Run

    def __init__(
        self,
        log: Log,
        run: Run,
        known: Known,
        view: View,
        size: Callable[[bytes], float],
        since: float = -inf,
    ) -> None:
        """`size` is the number of samples of a pool, with those that are not at hand."""
        super().__init__(known, view, since)
        self.run = run
        self._log = log
        self._size = size
        self._rewinds, self._drops = run.rewinds, len(run.places.dropped)

    def draw(self) -> None:
        super().draw()
        if self._begun is None:
            self._begun = self.sizes()

    def is_far(self) -> bool:
        return any(len(self._view(key)) < self._size(key) < inf for key in self.lacks())

    def _free(self, key: bytes, samples: Sequence[Sample]) -> Iterator[int]:
        places, pool, size = self.run.places, pool_of(key), len(samples)
        end = places.end(pool)
        if end > size and end > (whole := max(size, self._size(key))):  # samples were removed
            places.clip(pool, int(whole))
            self._log.note(self.run, (pool,))
        if (fresh := self.run.fresh_since) > -inf and not places.has_floor(pool):
            before = [k for k, sample in enumerate(samples) if sample.stored_at < fresh]
            places.begin_at(pool, before[-1] + 1 if before else 0)
        free = places.free(pool, size)
        if self._since == -inf:
            return free
        return (place for place in free if samples[place].stored_at >= self._since)

    def _take(self, key: bytes, place: int) -> bool:
        pool = pool_of(key)
        is_taken = self.run.places.take(pool, place)
        if is_taken and not self.run.is_over:
            self._log.note(self.run, (pool,))
        return is_taken

    def _end(self, *, is_delivered: bool) -> None:
        if is_delivered or self.run.rewinds != self._rewinds or self.run.is_over:
            return
        dropped = self.run.places.dropped[self._drops :]
        for key, item in zip(self.known.keys, self._held, strict=True):
            pool = pool_of(key)
            for held in item if pool not in dropped else ():
                if held.is_marked and self.run.places.give_back(pool, held.place):
                    self._log.note(self.run, (pool,))


def lacks_of(claims: Iterable[object], but: Claim) -> dict[bytes, int]:
    """How many samples of each pool the other calls of a run lack, of those that are given."""
    found: dict[bytes, int] = {}
    for claim in claims:
        if isinstance(claim, Claim) and claim is not but and claim.run is but.run:
            for key, lack in claim.lacks().items():
                found[key] = found.get(key, 0) + lack
    return found
