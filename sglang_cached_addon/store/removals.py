"""What people have removed of a store, as numbers that rise.

Pure. What was planned before a pool was removed is not to be stored behind that: whoever plans asks
for the number of its pools, and again before it stores.
"""

from __future__ import annotations

from collections.abc import Iterable

MOST = 10_000
"""So many removed pools are remembered one by one; of those before them it is as if all had been
removed."""


class Removals:
    """Of one store."""

    def __init__(self) -> None:
        self.count = 0
        """How often something was removed."""
        self._of_all = 0
        """What `count` was when all, or a part of it, was removed last."""
        self._of: dict[bytes, int] = {}
        """The same for single pools, by key."""

    def note_all(self) -> None:
        """Everything, or a part of it, is removed."""
        self.count += 1
        self._of_all = self.count
        self._of.clear()

    def note(self, key: bytes) -> None:
        """One pool is removed."""
        if len(self._of) >= MOST:
            self.note_all()
        self.count += 1
        self._of[key] = self.count

    def of(self, keys: Iterable[bytes]) -> int:
        """A number that rises when any of these pools is removed."""
        if not self._of:
            return self._of_all
        return max(self._of_all, *(self._of.get(key, 0) for key in keys))
