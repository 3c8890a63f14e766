"""What was measured: rows, a value per target and round, and how targets compare.

Pure. Targets are compared round by round, because a round's measurements lie close together
and the machine drifts between rounds; the median of these ratios is the ratio of a row.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Row:
    """One figure of several targets."""

    name: str
    unit: str
    reference: str
    """The target that the others are compared with."""
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    """By target, then by round."""

    def median(self, target: str) -> float:
        return statistics.median(self.values[target].values())

    def low(self, target: str) -> float:
        return min(self.values[target].values())

    def high(self, target: str) -> float:
        return max(self.values[target].values())

    def ratio(self, target: str, reference: str | None = None) -> float | None:
        """How many times the reference; None where one of them was not measured."""
        return self._compare(target, reference, lambda value, base: value / base)

    def difference(self, target: str, reference: str | None = None) -> float | None:
        """How much more than the reference; None where one of them was not measured."""
        return self._compare(target, reference, lambda value, base: value - base)

    def _compare(
        self, target: str, reference: str | None, how: Callable[[float, float], float]
    ) -> float | None:
        mine, theirs = (self.values.get(t, {}) for t in (target, reference or self.reference))
        rounds = mine.keys() & theirs.keys()
        return statistics.median(how(mine[r], theirs[r]) for r in rounds) if rounds else None


class Results:
    """All rows, in the order in which they came."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.failures: list[str] = []
        """What did not run."""

    def add(
        self, name: str, unit: str, reference: str, target: str, turn: int, value: float
    ) -> None:
        row = self.rows.setdefault(name, Row(name, unit, reference))
        row.values.setdefault(target, {})[turn] = value
