"""The keys of a store as they are at one moment, for a thread, while the event loop changes them.

Pure, but for a lock. They are taken a few at a time, so that nobody waits for long. If keys come or
go meanwhile, it begins anew; where they always do, all are taken at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

PIECE = 10_000
"""Keys that are taken at a time: half a millisecond."""

TRIES = 5
"""How often it begins anew."""


def keys_of(
    keys: Callable[[], Iterator[bytes]], lock: AbstractContextManager[object]
) -> list[bytes]:
    """All keys; `keys` gives an iterator of a dictionary, under the lock."""
    for _ in range(TRIES):
        found: list[bytes] = []
        with lock:
            left = keys()
        try:
            while True:
                with lock:
                    some = list(islice(left, PIECE))
                if not some:
                    return found
                found += some
        except RuntimeError:  # the dictionary has grown or shrunk
            continue
    with lock:
        return list(keys())
