"""What a store in memory is made of: one pool, and the document that nobody keeps.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from sglang_cached_addon.core.cache import Sample, counts


class Pool(list[Sample]):
    """The samples of a key, their API, and the names of the bodies that they answer."""

    __slots__ = ("call", "dialect", "names", "newest", "oldest")

    def __init__(self, dialect: str, call: bytes) -> None:
        super().__init__()
        self.dialect = dialect
        self.call = call
        """The canonical call, where it is kept; else empty."""
        self.names: tuple[bytes, ...] = ()
        self.oldest, self.newest = inf, -inf
        """When the oldest and the newest sample were stored: Unix seconds."""

    def put(self, samples: Sequence[Sample], places: Sequence[int]) -> list[Sample]:
        """Puts samples into these places, or behind the end; returns those that were there."""
        replaced = [self[place] for place in places if place < len(self)]
        for place, sample in zip(places, samples, strict=True):
            self[place : place + 1] = [sample]
        if replaced:
            self._date()
        else:
            self._date_with(samples)
        return replaced

    def expire(self, since: float, now: float) -> list[Sample]:
        """Drops the samples that do not count (see `cache.counts`), and returns them."""
        if counts(self.oldest, since, now) and counts(self.newest, since, now):
            return []
        gone = [sample for sample in self if not counts(sample.stored_at, since, now)]
        self[:] = [sample for sample in self if counts(sample.stored_at, since, now)]
        self._date()
        return gone

    def _date(self) -> None:
        self.oldest, self.newest = inf, -inf
        self._date_with(self)

    def _date_with(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.oldest = min(self.oldest, sample.stored_at)
            self.newest = max(self.newest, sample.stored_at)


class Nowhere:
    """A `Document` that nobody keeps."""

    is_rejected = False

    def load(self) -> dict[str, Any]:
        return {}

    def reject(self, why: str) -> None:
        """Nothing was loaded."""

    def save(self, document: dict[str, Any]) -> None:
        """Nothing is kept."""
