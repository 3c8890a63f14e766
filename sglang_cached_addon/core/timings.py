"""How long things took, as histograms: plain counts, that a hit adds to next to no cost.

Pure: seconds are arguments. What becomes of the numbers is in `admin/metrics.py`.
"""

from __future__ import annotations

from bisect import bisect_left

from sglang_cached_addon.core.outcome import Kind

BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
)  # fmt: skip
"""The upper bounds of the buckets, in seconds: from a hit of the fast lane to a long generation."""

_FIRST = BOUNDS[0]


class Histogram:
    """How often something took how long."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        """For each bound, how often it took so long, and longer than the bound before; the last one
        is for what has taken longer than all bounds."""
        self.sum = 0.0
        """All of it together, in seconds."""

    def add(self, seconds: float) -> None:
        """Something took so long."""
        if seconds <= _FIRST:  # a hit of the fast lane, as most are: without another call
            self.counts[0] += 1
        else:
            self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds


class Timings:
    """How long the answers of this process took."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, Kind], Histogram] = {}
        """From the call to the end of its answer, by dialect and outcome."""
        self.first_event = Histogram()
        """From the call to the first event of a stream."""
        self.loop_delay = Histogram()
        """By how much the event loop was late."""

    def of(self, dialect: str, kind: Kind) -> Histogram:
        """The answers of that dialect and outcome."""
        return self.answers.setdefault((dialect, kind), Histogram())
