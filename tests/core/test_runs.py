"""Which places runs have taken, and how runs are named."""

from __future__ import annotations

import random
import sys

import pytest

from sglang_cached_addon.core import runs
from sglang_cached_addon.core.runs import Places
from tests.tables import each


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
            assert dict(places).get(1, []) == sorted(taken), seed
            assert places.end(1) == max(taken, default=-1) + 1, seed


def test_memory() -> None:
    """A place takes no more than 100 bytes, though it is the only one of its pool."""
    places, count = Places(), 50_000
    pools = [runs.pool_of(random.Random(k).randbytes(32)) for k in range(count)]
    assert len(set(pools)) == count
    for pool in pools:
        places.take(pool, 0)
    size = sys.getsizeof(places._ends) + sum(map(sys.getsizeof, pools))
    assert size / count <= 100


@each(("path", "found"), [
    ("/generate", (None, "/generate")),
    ("/run/a/generate", ("a", "/generate")),
    ("/run/a.B-9_/v1/models?x=/y", ("a.B-9_", "/v1/models?x=/y")),
    ("/run/a", ("a", "/")),
    ("/run/a/", ("a", "/")),
    ("/run/a?x=1", ("a", "/?x=1")),
    ("/run//generate", ("", "/generate")),
    ("/run/a//generate", ("a", "//generate")),
    ("/run/a/run/b/generate", ("a", "/run/b/generate")),
    ("/run", (None, "/run")),
    ("/runs/a/generate", (None, "/runs/a/generate")),
    ("/v1/run/a", (None, "/v1/run/a")),
])  # fmt: skip
def test_split(path: str, found: tuple[str | None, str]) -> None:
    """The prefix is taken off a path, and nothing else."""
    assert runs.split(path) == found


def test_names() -> None:
    """The header wins; a bad name says what a name is, and no name is none."""
    assert runs.chosen(None, None) == ""
    assert runs.chosen("a", None) == "a"
    assert runs.chosen("a", "b") == "b"
    for in_path, in_header in (
        ("", None),
        (None, ""),
        ("a", "b c"),
        ("x" * 101, None),
        ("ä", None),
    ):
        with pytest.raises(ValueError, match="1 to 100 letters"):
            runs.chosen(in_path, in_header)


def test_written() -> None:
    """Places are written in spans, and read back."""
    for places, text in (
        ([0], "0"), ([3, 4, 5, 6], "3-6"), ([0, 2, 3, 4, 9], "0+2-4+9"), (range(2, 5), "2-4"),
        (range(7, 8), "7"), ([], ""),
    ):  # fmt: skip
        assert runs.written(places) == text
        assert not text or list(runs.read(text)) == list(places)
