"""What a call has of a run that several proxies share.

What was generated here and is not stored yet nobody else knows of: it is taken at once. For all
else the server is asked, until it has granted what is lacking, or there is no more. Knows the run
as a protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.places import marks, pool_of
from sglang_cached_addon.service.claims import Claim, View
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.runs import SharedRun

Bring = Callable[[Mapping[bytes, int]], Awaitable[object] | None]
"""Fetches samples of pools from the server, up to so many of each; None if there is none."""


class Open(NamedTuple):
    """A sample that may be free."""

    place: int
    mark: int
    sample: Sample


class SharedClaim(Claim):
    """What one call has."""

    run: SharedRun

    def __init__(
        self,
        run: SharedRun,
        known: Known,
        view: View,
        stored: View,
        bring: Bring,
        since: float = -inf,
    ) -> None:
        """`stored` has those samples of a `view` that others may know of."""
        super().__init__(known, view, since)
        self.run = run
        self._stored = stored
        self._bring = bring
        self._marks: list[tuple[int, int]] = []
        """The turn and the mark of each sample that was taken."""
        self._refused: set[int] = set()
        """Marks that others had when they were asked for."""
        self._is_blind = False
        """Nobody knows what is taken."""
        self._looked: dict[bytes, int] | None = None
        """How many samples of each pool were at hand when there was nothing more for it."""

    def draw(self) -> None:
        if self._looked is not None:  # the server may have granted what comes before
            super().draw()

    def can_draw(self) -> bool:
        lacks = () if self._is_blind else self.lacks()
        return any(next(self._open(key), None) is not None for key in lacks)

    async def ready(self) -> bool:
        has_looked = self.sizes() == self._looked and not (self._is_blind or self.can_draw())
        if self._since == inf or has_looked:
            return False
        self._is_blind, has_waited = False, False
        while lacks := self.lacks():
            sizes = self.sizes()
            has_waited |= await self._ask()
            # Others may have taken all that comes next, so that as much again is read.
            needs = {key: sizes[key] + max(lack, sizes[key]) for key, lack in lacks.items()}
            bringing = None if self._is_blind or not self.lacks() else self._bring(needs)
            if bringing is None:
                break
            await bringing
            has_waited = True
            if self.sizes() == sizes:
                break
        self._looked = self.sizes()
        if self._begun is None:
            self._begun = self._looked
        return has_waited

    async def _ask(self) -> bool:
        """Takes what the server grants of what is at hand; whether it was asked."""
        width, has_asked = 1, False
        while not self._is_over:
            lacks = self.lacks()
            found = {key: list(islice(self._open(key), n * width)) for key, n in lacks.items()}
            wants = [(lacks[key], [o.mark for o in some]) for key, some in found.items() if some]
            # Where nothing seems to be free, the run may have begun anew elsewhere.
            if has_asked and not wants:
                break
            has_asked, before = True, self.run.current
            granted = await self.run.take(wants)
            if granted is None:
                self._is_blind = True
                break
            self._grant(found, set(granted))
            if self.run.current == before:
                width *= 2
                still = self.lacks()
                self._refused |= {o.mark for key in still for o in found[key]}
        return has_asked

    def _grant(self, found: Mapping[bytes, Sequence[Open]], granted: set[int]) -> None:
        if self._is_over:  # it was aborted meanwhile
            self.run.settle(granted, self.run.turn, is_delivered=False)
            return
        self._marks += [(self.run.turn, mark) for mark in granted]
        ours = {key: iter([o for o in some if o.mark in granted]) for key, some in found.items()}
        for key, item in zip(self.known.keys, self._held, strict=True):
            for place, _, sample in islice(ours.get(key, iter(())), self.known.call.n - len(item)):
                self._put(key, item, place, sample, is_marked=True)

    def generated(self, new: Iterable[tuple[bytes, Sample]], *, is_alone: bool) -> None:
        counts = [len(item) for item in self._held]
        super().generated(new, is_alone=is_alone)
        for item, count in zip(self._held, counts, strict=True) if is_alone else ():
            item[count:] = [each._replace(place=-1) for each in item[count:]]

    def _open(self, key: bytes) -> Iterator[Open]:
        """The samples of a pool that are for this call, and may be free."""
        samples, since = self._view(key), max(self._since, self.run.fresh_since)
        for place, mark in enumerate(marks(pool_of(key), samples)):
            is_for_it = samples[place].stored_at >= since and mark not in self._refused
            if is_for_it and self.run.is_free(mark):
                yield Open(place, mark, samples[place])

    def _free(self, key: bytes, samples: Sequence[Sample]) -> Iterator[int]:
        start = len(self._stored(key))
        if start < len(samples):
            yield from (each.place for each in self._open(key) if each.place >= start)

    def _take(self, key: bytes, place: int) -> bool:
        mark = next(islice(marks(pool_of(key), self._view(key)), place, None))
        if is_taken := self.run.hold(mark):
            self._marks.append((self.run.turn, mark))
        return is_taken

    def _end(self, *, is_delivered: bool) -> None:
        for turn in {turn for turn, _ in self._marks}:
            marks = [mark for each, mark in self._marks if each == turn]
            self.run.settle(marks, turn, is_delivered=is_delivered)
        self._marks.clear()
