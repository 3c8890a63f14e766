"""A bounded memory of results.

Pure. It has two generations instead of a list of uses: when the young one is full, it becomes the
old one, and the former old one is dropped. Reading a young value costs one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memo(Generic[K, V]):
    """Holds values whose weights sum up to about `limit`, and for a moment to twice that."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._weight = 0
        self._young: dict[K, tuple[V, int]] = {}
        self._old: dict[K, tuple[V, int]] = {}

    def get(self, key: K) -> V | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is None:
                return None
            self.put(key, *found)
        return found[0]

    def values(self) -> list[V]:
        """All that is remembered, the latest last."""
        return [value for value, _ in (*self._old.values(), *self._young.values())]

    def put(self, key: K, value: V, weight: int) -> bool:
        """Remembers a value of this weight; False for one that is too heavy to be kept."""
        is_kept = self.charge(weight)
        if is_kept:
            self._young[key] = (value, weight)
        return is_kept

    def charge(self, weight: int) -> bool:
        """Whether something of this weight may be kept within a value. If so, it is counted."""
        if weight > self._limit // 16:
            return False
        self._weight += weight
        if self._weight > self._limit:
            self._old, self._young = self._young, {}
            self._weight = weight
        return True

    def clear(self) -> None:
        self._young.clear()
        self._old.clear()
        self._weight = 0
