"""How long things took."""

from __future__ import annotations

from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.timings import BOUNDS, Histogram, Timings
from tests.tables import each


@each(
    ("seconds", "bucket"),
    [
        (0.0, 0), (BOUNDS[0], 0), (BOUNDS[0] * 1.01, 1), (BOUNDS[-1], len(BOUNDS) - 1),
        (BOUNDS[-1] + 1, len(BOUNDS)),
    ],
)  # fmt: skip
def test_histogram(seconds: float, bucket: int) -> None:
    """A bound is in its own bucket, and what is longer than all has one, too."""
    histogram = Histogram()
    histogram.add(seconds)
    assert histogram.counts[bucket] == sum(histogram.counts) == 1
    assert histogram.sum == seconds


def test_timings() -> None:
    """Dialects and outcomes are counted apart."""
    timings = Timings()
    for dialect, kind in (("a", Kind.HIT), ("a", Kind.HIT), ("a", Kind.MISS), ("b", Kind.HIT)):
        timings.of(dialect, kind).add(1.0)
    found = {what: (sum(of.counts), of.sum) for what, of in timings.answers.items()}
    assert found == {("a", Kind.HIT): (2, 2), ("a", Kind.MISS): (1, 1), ("b", Kind.HIT): (1, 1)}
