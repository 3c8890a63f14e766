"""Lines that wait for the disk."""

from __future__ import annotations

from concurrent.futures import Future

from sglang_cached_addon.store.journal.extents import PENDING, Head
from sglang_cached_addon.store.journal.waiting import Waiting


def head(number: int) -> Head:
    return Head(b"%032d" % number, b"", 0, "chat", 1.0, 1)


def test_lines() -> None:
    """Lines have the order in which they came, each stands for itself, and their bytes are
    counted."""
    waiting = Waiting()
    assert (len(waiting), waiting.size, waiting.lag) == (0, 0, 0.0)
    places = [waiting.add(head(number), b"x" * 10) for number in range(5)]
    assert len({place.offset for place in places}) == 5
    assert all(place.offset > PENDING and place.length == 10 for place in places)
    assert [line.place for line in waiting] == places
    assert (len(waiting), waiting.size) == (5, 50)
    assert waiting[places[3]].head == head(3)
    assert waiting.lag > 0
    waiting.forget(waiting[places[3]])
    waiting.forget(next(iter(waiting)))
    assert [line.place for line in waiting] == [places[k] for k in (1, 2, 4)]
    assert waiting.size == 30
    assert waiting.add(head(9), b"") not in places


def test_the_first() -> None:
    """The first lines are no more than fill so many bytes, but one at least."""
    waiting = Waiting()
    for number in range(5):
        waiting.add(head(number), b"x" * 10)
    for size, count in ((1, 1), (10, 1), (11, 2), (30, 3), (1000, 5)):
        assert len(waiting.first(size)) == count, size


def test_dropped() -> None:
    """Lines are dropped, but for those that somebody waits for, and for each only once."""
    waiting = Waiting()
    for number in range(4):
        waiting.add(head(number), b"x", Future() if number == 2 else None)
    line = next(iter(waiting))
    waiting.drop(lambda line: line.head != head(1))
    assert [line.head for line in waiting] == [head(1), head(2)]
    waiting.forget(line)
    assert waiting.size == 2
