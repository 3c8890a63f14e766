"""What is kept, and which of it counts."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.cache import SKEW, slots
from tests.tables import each

NOW = 1000.0


PLACES = [
    ([], 2, -inf, [0, 1]),
    ([1.0, 2.0], 2, -inf, [2, 3]),
    ([NOW + 99, 2.0], 1, -inf, [2]),
    ([1.0, 2.0, 3.0, 4.0, 5.0], 1, inf, [0]),
    ([1.0, 2.0], 3, inf, [0, 1, 2]),
    ([1.0, 9.0, 2.0], 1, 5.0, [0]),
    ([1.0, 9.0, 2.0], 3, 5.0, [0, 2, 3]),
    ([9.0, 9.0], 1, 5.0, [2]),
    ([NOW + 99, 9.0], 1, 5.0, [0]),  # the future does not count
    ([NOW + SKEW, NOW + SKEW + 1], 1, 5.0, [1]),  # but clocks differ
]


@each(("times", "count", "since", "places"), PLACES)
def test_slots(times: list[float], count: int, since: float, places: list[int]) -> None:
    """New samples take the places of those that do not count first, and leave the others alone."""
    assert slots(times, count, since, NOW) == places
