"""Places: the numbers of samples in their pools, and which of them a run has taken.

Pure. The next call of a run takes the lowest free places; one that was not answered in full gives
its places back. Knows no samples: whether a place has one is told by the size of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from sglang_cached_addon.core.cache import Sample

Pool = int
"""A pool within a run: 60 bits of its key, which is as small as Python's integers are."""


def pool_of(key: bytes) -> Pool:
    """The pool with this key, of 32 bytes: bits of what names the call, not of the model's."""
    return int.from_bytes(key[8:16], "big") >> 4


def marks(pool: Pool, samples: Iterable[Sample]) -> Iterator[int]:
    """A number for each sample of a pool, by which all proxies know it, wherever in the pool it is:
    made of when it was stored, and of how many before it were stored then."""
    seen: dict[float, int] = {}
    for sample in samples:
        at = sample.stored_at
        seen[at] = nth = seen.get(at, -1) + 1
        (bits,) = _BITS.unpack(_FLOAT.pack(at))
        yield (pool + bits * _FACTOR + nth * _STEP) & _MASK


_FLOAT, _BITS = Struct("<d"), Struct("<Q")
_FACTOR, _STEP, _MASK = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, (1 << 63) - 1


class Used(NamedTuple):
    """What a run has used; for any thread."""

    has: Callable[[bytes, Sequence[Sample]], bool]
    """Whether it has any of these samples of the pool of a key."""
    pools: Collection[Pool] | None = None
    """The pools of which it has any; None where that is not known."""


class Places:
    """Which places of the pools are taken."""

    def __init__(self) -> None:
        self.count = 0
        """The number of places that are taken."""
        self._ends: dict[Pool, int] = {}
        """The place behind the last one that is taken."""
        self._gaps: dict[Pool, set[int]] = {}
        """Free places before that. In few pools there are any."""
        self._floors: dict[Pool, int] = {}
        """Places below are not for this run."""
        self.dropped: list[Pool] = []
        """The pools whose samples were removed."""

    def __iter__(self) -> Iterator[Pool]:
        """The pools of which something is taken."""
        return iter(self._ends)

    def __getitem__(self, pool: Pool) -> Sequence[int]:
        """The places of a pool that are taken, in ascending order."""
        whole = range(self._floors.get(pool, 0), self._ends.get(pool, 0))
        gaps = set(self._gaps.get(pool, ()))
        return [place for place in whole if place not in gaps] if gaps else whole

    def __setitem__(self, pool: Pool, spans: Iterable[range]) -> None:
        """Takes these places of a pool, which are in ascending order, and no others."""
        self.clip(pool, 0)
        end, gaps = 0, set[int]()
        for span in spans:
            gaps.update(range(end, span.start))
            end = span.stop
            self.count += len(span)
        self._put(pool, end, gaps)

    def end(self, pool: Pool) -> int:
        """The place behind the last one that is taken."""
        return self._ends.get(pool, 0)

    def lowest(self, pools: Sequence[Pool], n: int) -> tuple[Sequence[int], ...]:
        """For each of these pools its n lowest free places; where a pool stands there twice, those
        that come next."""
        if len(pools) == 1 and pools[0] not in self._gaps:  # as nearly always
            start = self._ends.get(pools[0]) or self._floors.get(pools[0], 0)
            return (range(start, start + n),)
        found: list[Sequence[int]] = []
        dealt: dict[Pool, int] = {}
        for pool in pools:
            begin = dealt.get(pool, 0)
            dealt[pool] = end = begin + n
            start = self._ends.get(pool) or self._floors.get(pool, 0)
            some: Sequence[int] = range(start + begin, start + end)
            if gaps := self._gaps.get(pool):
                some = tuple([*sorted(gaps), *range(start, start + end)][begin:end])
            found.append(some)
        return tuple(found)

    def free(self, pool: Pool, size: int) -> Iterator[int]:
        """The free places of a pool of that size, in ascending order."""
        if gaps := self._gaps.get(pool):
            yield from sorted(place for place in gaps if place < size)
        yield from range(self._ends.get(pool) or self._floors.get(pool, 0), size)

    def take_lowest(self, pools: Sequence[Pool], places: Sequence[Sequence[int]]) -> int:
        """Takes places that `lowest` has just given; how many these are."""
        if len(pools) == 1 and pools[0] not in self._gaps:
            self._ends[pools[0]] = places[0][-1] + 1
            self.count += (n := len(places[0]))
            return n
        before = self.count
        for pool, some in zip(pools, places, strict=True):
            if pool in self._gaps:
                for place in some:
                    self.take(pool, place)
            else:
                self._ends[pool] = some[-1] + 1
                self.count += len(some)
        return self.count - before

    def take(self, pool: Pool, place: int) -> bool:
        """Takes a place; False if it is taken already."""
        end, floor = self._ends.get(pool, 0), self._floors.get(pool, 0)
        if place >= end:
            self._ends[pool] = place + 1
            if between := range(max(end, floor), place):
                self._gaps.setdefault(pool, set()).update(between)
        elif place in (gaps := self._gaps.get(pool, set())):
            gaps.discard(place)
            if not gaps:
                del self._gaps[pool]
        else:
            return False
        self.count += 1
        return True

    def give_back(self, pool: Pool, place: int) -> bool:
        """Gives a place back; False if it is not taken."""
        end, gaps = self._ends.get(pool, 0), self._gaps.get(pool, set())
        if not self._floors.get(pool, 0) <= place < end or place in gaps:
            return False
        self.count -= 1
        self._put(pool, end, gaps | {place})
        return True

    def clip(self, pool: Pool, size: int) -> None:
        """Only so many samples are left of a pool: what was taken behind them is free again, as new
        samples will be there."""
        end, gaps = self._ends.get(pool, 0), self._gaps.get(pool, set())
        floor = self._floors.get(pool, 0)
        if floor > size:
            self._floors[pool] = size
        if end > size:
            gone = range(max(size, floor), end)
            self.count -= len(gone) - sum(place in gone for place in gaps)
            self._put(pool, size, gaps.difference(gone))

    def drop(self, pool: Pool) -> bool:
        """The samples of a pool are gone, and all its places are free; whether any was taken. What
        was taken before is not to be given back."""
        is_known = pool in self._ends or pool in self._floors
        if is_known:
            self.clip(pool, 0)
            self.dropped.append(pool)
        return is_known

    def has_floor(self, pool: Pool) -> bool:
        return pool in self._floors

    def begin_at(self, pool: Pool, floor: int) -> None:
        """Places below this one are not for this run; none of them is taken."""
        self._floors[pool] = floor
        if gaps := self._gaps.get(pool):
            self._put(pool, self._ends[pool], {place for place in gaps if place >= floor})

    def _put(self, pool: Pool, end: int, gaps: set[int]) -> None:
        while end and end - 1 in gaps:
            end -= 1
            gaps.discard(end)
        self._ends.pop(pool, None)
        self._gaps.pop(pool, None)
        if end > self._floors.get(pool, 0):
            self._ends[pool] = end
            if gaps:
                self._gaps[pool] = gaps


def written(places: Sequence[int]) -> str:
    """Places in ascending order, as `0`, `3-6` or `0+2-4`."""
    if len(places) == 1:
        return str(places[0])
    if places and places[-1] - places[0] == len(places) - 1:
        return f"{places[0]}-{places[-1]}"
    spans: list[list[int]] = []
    for place in places:
        if spans and place == spans[-1][1] + 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return "+".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def read(text: str) -> Iterator[range]:
    """The inverse of `written`, span by span. Raises ValueError."""
    for span in text.split("+") if text else ():
        first, _, last = span.partition("-")
        yield range(int(first), int(last or first) + 1)
