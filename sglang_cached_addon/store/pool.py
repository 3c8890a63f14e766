"""What a store in memory is made of: one pool, and the document that nobody keeps.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from sglang_cached_addon.core.cache import Sample


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

    def date(self) -> None:
        """Finds out when its samples were stored."""
        self.oldest, self.newest = inf, -inf
        self.date_with(self)

    def date_with(self, samples: Sequence[Sample]) -> None:
        """Takes account of samples that were added."""
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
