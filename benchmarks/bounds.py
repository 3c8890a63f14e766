"""The targets that must hold, as one table. Pure.

A bound compares two targets of one row, by ratio or by difference in the row's unit. One
that was not measured is neither met nor missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.attacks import ATTACKS
from benchmarks.results import Row
from benchmarks.servers import (
    COMPACTING,
    DIRECT,
    EARLY,
    IN_RUNS,
    JSON,
    KEPT,
    LATE,
    LINES,
    MITMDUMP,
    NGINX,
    OURS,
    OUTSIDE,
    QUIET,
    RELAYED,
    REPLAYED,
    SETTLED,
    UNSTORED,
)


def entries(count: int) -> str:
    """The name of a cache with so many entries, as a target."""
    return f"{count:,} entries"


@dataclass(frozen=True, slots=True)
class Bound:
    """One target."""

    name: str
    row: str
    reference: str
    sign: Literal["<=", ">="]
    limit: float
    target: str = OURS
    by: Literal["ratio", "difference"] = "ratio"

    def found(self, rows: dict[str, Row]) -> float | None:
        """The figure to be judged; None if it was not measured."""
        row = rows.get(self.row)
        if row is None:
            return None
        compare = row.ratio if self.by == "ratio" else row.difference
        return compare(self.target, self.reference)

    def verdict(self, found: float | None) -> str:
        if found is None:
            return "not measured"
        is_met = found <= self.limit if self.sign == "<=" else found >= self.limit
        return "met" if is_met else "missed"


def bounds(few: int, many: int, little: int, large: int) -> list[Bound]:
    """The table. The sizes are those of the `spread` rows and of the `scale` rows."""
    return [
        # What the ordinary way, through the hooks, must keep.
        Bound("hit, p50", "hit-small p50", MITMDUMP, "<=", 0.5),
        Bound("miss, p50 added", "miss p50", DIRECT, "<=", 600, by="difference"),
        Bound(
            "cost of a hit, many entries",
            "scale-hit p50",
            entries(little),
            "<=",
            1.2,
            entries(large),
        ),
        Bound(
            "cost of a miss, many entries",
            "scale-miss p50",
            entries(little),
            "<=",
            1.2,
            entries(large),
        ),
        # What the fast lane is for.
        Bound("hit, p50", "hit-small p50", NGINX, "<=", 1.0),
        Bound("hits/s", "hit-small-rate", NGINX, ">=", 0.75),
        Bound("hit of 16 KB, p50", "hit-16k p50", NGINX, "<=", 0.35),
        Bound("hits/s of 16 KB", "hit-16k-rate", NGINX, ">=", 3.5),
        Bound("hits/s", "hit-small-rate", MITMDUMP, ">=", 30),
        Bound("miss, p50 added", "miss p50", DIRECT, "<=", 450, by="difference"),
        Bound("cost of a hit, spread", "spread p50", entries(few), "<=", 1.15, entries(many)),
        Bound("cost of a hit, in runs", "hit-run cpu", OUTSIDE, "<=", 1.5, IN_RUNS),
        Bound("64 streams, events/s", "streams-64", DIRECT, ">=", 0.97),
        Bound("64 streams, cost of recording", "streams-64", UNSTORED, ">=", 0.97),
        Bound("deltas/s replayed", "deltas-64", RELAYED, ">=", 20, REPLAYED),
        Bound("first event of a replay", "first-replay", JSON, "<=", 2, REPLAYED),
        Bound(
            "memory kept by 10,000 streams",
            "streams-memory",
            EARLY,
            "<=",
            4,
            LATE,
            by="difference",
        ),
        Bound("opening a large journal", "open", LINES, "<=", 4, KEPT),
        Bound("cost of a hit while compacting", "compact p50", SETTLED, "<=", 2, COMPACTING),
        Bound(
            "a hit while compacting, p99 added",
            "compact p99",
            SETTLED,
            "<=",
            2000,
            COMPACTING,
            by="difference",
        ),
        Bound("first event, added", "first-event", DIRECT, "<=", 3, by="difference"),
        *(
            Bound(
                f"p99 added: {attack.name}",
                "meanwhile p99",
                QUIET,
                "<=",
                100_000,
                attack.name,
                by="difference",
            )
            for attack in ATTACKS
        ),
    ]
