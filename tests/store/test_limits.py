"""How much is kept, and what goes first."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.store.limits import SWEEP, Limits, Sweep, machine_memory
from tests.tables import each

KEYS = [b"%d" % n for n in range(300)]


@each(
    ("limits", "most", "count"),
    [
        (Limits(), inf, 0),
        (Limits(entries=300), inf, 2),  # below the limit by a part of it
        (Limits(entries=299), inf, 3),
        (Limits(entries=10), inf, 290),  # small limits are kept to the letter
        (Limits(entries=10), 7, 7),
        (Limits(bytes=2990), inf, 4),
        (Limits(entries=298, bytes=100), inf, 290),
        (Limits(entries=0), inf, 300),
    ],
)
def test_victims(limits: Limits, most: float, count: int) -> None:
    """The first keys go, as many as have to, and not too many at once."""
    found = limits.victims(iter(KEYS), 300, 3000, lambda key: 10, most)
    assert found == KEYS[:count]


def test_allow() -> None:
    """What is at a limit may stay, and what is beyond one may not."""
    limits = Limits(entries=2, bytes=20)
    assert [limits.allow(*one) for one in ((2, 20), (3, 20), (2, 21))] == [True, False, False]


def test_sweep() -> None:
    """A round meets each key once, a few at a time, and then the next round begins."""
    sweep, keys = Sweep(), list(range(SWEEP * SWEEP + 100))
    index = [b"%d" % n for n in keys]
    for _ in range(2):
        met: list[bytes] = []
        while few := sweep.next(index):
            assert len(few) <= SWEEP
            met += few
        assert sorted(met) == sorted(index)


def test_machine_memory() -> None:
    """There is a bound, and it is not small."""
    assert 1 << 20 < machine_memory() < inf
