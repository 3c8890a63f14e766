"""What a store in memory is made of: one pool, and the document that nobody keeps.

Pure. What is kept for long is in plain tuples of values, and in no object of a class: these the
garbage collector looks at again and again, which holds up everything else the longer the more there
is (0.1 s for 300,000), while of tuples it soon knows that no circle goes through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any, NamedTuple, overload

from sglang_cached_addon.core.cache import Sample, counts

Kept = tuple[Any, ...]
"""A `Sample`, or a `Pool`, as a plain tuple."""


class Samples(Sequence[Sample]):
    """The samples of a pool, each made when it is looked at."""

    __slots__ = ("_kept",)

    def __init__(self, kept: tuple[Kept, ...]) -> None:
        self._kept = kept

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Sample]:
        return map(Sample._make, self._kept)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | Sequence[Sample]:
        kept = self._kept[at]
        return Samples(kept) if isinstance(at, slice) else Sample._make(kept)


class Pool(NamedTuple):
    """The samples of a key, their API, and the names of the bodies that they answer."""

    dialect: str
    call: bytes
    """The canonical call, where it is kept; else empty."""
    names: tuple[bytes, ...] = ()
    oldest: float = inf
    newest: float = -inf
    """When the oldest and the newest sample were stored: Unix seconds."""
    kept: tuple[Kept, ...] = ()
    """Its samples."""

    @property
    def samples(self) -> Sequence[Sample]:
        return Samples(self.kept)

    def put(self, samples: Sequence[Sample], places: Sequence[int]) -> tuple[Pool, list[Sample]]:
        """The pool with samples in these places, or behind its end; and those that were there."""
        here = self.samples
        replaced = [here[place] for place in places if place < len(here)]
        if not replaced:
            more = self._replace(kept=()).with_samples(samples)
            oldest, newest = min(self.oldest, more.oldest), max(self.newest, more.newest)
            return self._replace(oldest=oldest, newest=newest, kept=self.kept + more.kept), []
        after = list(here)
        for place, sample in zip(places, samples, strict=True):
            after[place : place + 1] = [sample]
        return self.with_samples(after), replaced

    def expire(self, since: float, now: float) -> tuple[Pool, list[Sample]]:
        """The pool without the samples that do not count (see `cache.counts`); and these."""
        if counts(self.oldest, since, now) and counts(self.newest, since, now):
            return self, []
        gone = [sample for sample in self.samples if not counts(sample.stored_at, since, now)]
        left = [sample for sample in self.samples if counts(sample.stored_at, since, now)]
        return self.with_samples(left), gone

    def with_samples(self, samples: Sequence[Sample]) -> Pool:
        """The same pool with other samples."""
        times = [sample.stored_at for sample in samples]
        oldest, newest = min(times, default=inf), max(times, default=-inf)
        return self._replace(oldest=oldest, newest=newest, kept=tuple(map(tuple, samples)))


class Nowhere:
    """A `Document` that nobody keeps."""

    is_rejected = False

    def load(self) -> dict[str, Any]:
        return {}

    def reject(self, why: str) -> None:
        """Nothing was loaded."""

    def save(self, document: dict[str, Any]) -> None:
        """Nothing is kept."""
