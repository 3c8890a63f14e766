"""Which places runs have taken."""

from __future__ import annotations

import random
import sys

from sglang_cached_addon.core.places import Places, pool_of, read, written


def test_places() -> None:
    """Whatever is taken, given back and removed, places are as a plain set has them."""
    for seed in range(3000):
        chance, places, taken, floor = random.Random(seed), Places(), set(), 0
        if chance.random() < 0.3:
            floor = chance.randrange(4)
            places.begin_at(1, floor)
        for _ in range(30):
            place, size, what = chance.randrange(12), chance.randrange(14), chance.random()
            if what < 0.5:
                free = [k for k in range(floor, size) if k not in taken]
                assert list(places.free(1, size)) == free, seed
                if free:
                    assert places.take(1, free[0])
                    taken.add(free[0])
            elif what < 0.6:
                place += floor
                assert places.take(1, place) == (place not in taken), seed
                taken.add(place)
            elif what < 0.9:
                assert places.give_back(1, place) == (place in taken), seed
                taken.discard(place)
            elif what < 0.95:
                n = chance.randint(1, 3)
                free = [k for k in range(floor, 40) if k not in taken][: 2 * n]
                found = places.lowest([1, 1], n)
                assert [*map(list, found)] == [free[:n], free[n:]], seed
                assert places.take_lowest([1, 1], found) == 2 * n
                taken.update(free)
            else:
                places.clip(1, size)
                taken, floor = {k for k in taken if k < size}, min(floor, size)
            assert places.count == len(taken), seed
            assert list(places[1]) == sorted(taken), seed
            assert list(places) == ([1] if taken else []), seed
            again = Places()
            again[1] = read(written(places[1]))
            assert (list(again[1]), again.count) == (sorted(taken), len(taken)), seed
            assert places.end(1) == max(taken, default=-1) + 1, seed


def test_memory() -> None:
    """A place takes no more than 100 bytes, though it is the only one of its pool."""
    places, count = Places(), 50_000
    pools = [pool_of(random.Random(k).randbytes(32)) for k in range(count)]
    assert len(set(pools)) == count
    for pool in pools:
        places.take(pool, 0)
    size = sys.getsizeof(places._ends) + sum(map(sys.getsizeof, pools))
    assert size / count <= 100


def test_written() -> None:
    """Places are written in spans, and read back."""
    for places, text in (
        ([0], "0"), ([3, 4, 5, 6], "3-6"), ([0, 2, 3, 4, 9], "0+2-4+9"), (range(2, 5), "2-4"),
        (range(7, 8), "7"), ([], ""),
    ):  # fmt: skip
        assert written(places) == text
        assert [place for span in read(text) for place in span] == list(places)


def test_dropped() -> None:
    """Where the samples of a pool are gone, all its places are free, also those below a floor; what
    is of other pools stays."""
    places = Places()
    for pool in (1, 2):
        for place in (0, 1, 3):
            places.take(pool, place)
    places.begin_at(3, 5)
    assert places.drop(1) and places.drop(3) and not places.drop(9)
    assert list(places[1]) == [] and list(places[2]) == [0, 1, 3]
    assert places.count == 3
    assert places.lowest([1], 2) == (range(2),) == places.lowest([3], 2)
    assert places.dropped == [1, 3]
