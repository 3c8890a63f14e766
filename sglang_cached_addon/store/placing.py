"""Where new samples come to be in a pool, and which of them make one line of the journal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from sglang_cached_addon.core.cache import Addition, Sample, slots
from sglang_cached_addon.store.journal.index import Index


def places(
    index: Index, addition: Addition, have: int, now: float
) -> tuple[Sequence[int], Sequence[int]]:
    """Which places new samples take: counted from the beginning of the pool, and as slots. `have`
    samples of the pool are in memory."""
    key, count, since = addition.key, len(addition.samples), addition.since
    end = index.end(key)
    if since == -inf:
        return range(have, have + count), range(end, end + count)
    pool = [
        (extent.slot + i, extent.at) for extent in index.extents(key) for i in range(extent.samples)
    ]
    found = slots([at for _, at in pool], count, since, now)
    return found, [pool[at][0] if at < len(pool) else end + at - len(pool) for at in found]


def line_ends(own: Sequence[int], samples: Sequence[Sample]) -> Iterator[int]:
    """Where to part samples so that each part is one line: its slots are side by side, and its
    samples were stored at one time."""
    for i in range(1, len(samples)):
        one, other = samples[i - 1], samples[i]
        is_of_one = (one.stored_at, one.seconds) == (other.stored_at, other.seconds)
        if own[i] != own[i - 1] + 1 or not is_of_one:
            yield i
    if samples:
        yield len(samples)
