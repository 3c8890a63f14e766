"""Where new samples come to be."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal.extents import Head, Place
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.placing import line_ends, places
from tests.tables import each

KEY = b"k" * 32


@each(
    ("since", "found"),
    [
        (-inf, ([4, 5, 6], [12, 13, 14])),
        (0.0, ([4, 5, 6], [12, 13, 14])),
        (1.5, ([0, 1, 4], [0, 1, 12])),
        (2.5, ([0, 1, 2], [0, 1, 10])),
        (inf, ([0, 1, 2], [0, 1, 10])),
    ],
)
def test_places(since: float, found: tuple[list[int], list[int]]) -> None:
    """Samples that do not count give their places, and their slots, to as many new ones."""
    index = Index()
    index.add(Head(KEY, b"", 0, "chat", 1.0, 2), Place(0, 10))
    index.add(Head(KEY, b"", 10, "chat", 2.0, 2), Place(10, 10))
    new = [Sample(b"{}", 9.0, 0.5, 1)] * 3
    at, own = places(index, Addition(KEY, "chat", b"{}", new, since=since), 4, 9.0)
    assert (list(at), list(own)) == found


@each(
    ("own", "times", "ends"),
    [
        ([], [], []),
        ([3], [1.0], [1]),
        ([3, 4, 5], [1.0, 1.0, 1.0], [3]),
        ([3, 5, 6], [1.0, 1.0, 1.0], [1, 3]),
        ([3, 4, 5], [1.0, 1.0, 2.0], [2, 3]),
    ],
)
def test_line_ends(own: list[int], times: list[float], ends: list[int]) -> None:
    """A line is of slots side by side, and of samples that were stored at one time."""
    samples = [Sample(b"{}", at, 0.5, 1) for at in times]
    assert list(line_ends(own, samples)) == ends
    if len(samples) > 1:
        slower = [*samples[:-1], Sample(b"{}", times[-1], 0.75, 1)]
        assert list(line_ends(own, slower))[-2] == len(samples) - 1
