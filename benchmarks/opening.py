"""What a large journal costs, in a process of its own: `python -m benchmarks.opening FOLDER`.

Prints one JSON object: seconds to read the file alone (`read`, and line by line: `lines`) and to
open the store (`open`), bytes of memory an entry that is not in memory (`entry`), and microseconds
to get one of those (`far`) and to get it again (`near`). Where the system has let go of a part
of the file, those entries are left out.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import orjson

from benchmarks.servers import resident
from sglang_cached_addon.store import DiskStore

GETS = 20_000
ENOUGH = 0.9
"""Of what is asked for."""


def measure(folder: Path) -> dict[str, float]:
    """Raises ValueError if too few entries can be read at once."""
    started = time.perf_counter()
    with open(folder / "cache.jsonl", "rb") as file:
        while file.read(1 << 20):
            pass
    read = time.perf_counter()
    with open(folder / "cache.jsonl", "rb") as file:
        for _ in file:
            pass
    lines = time.perf_counter()
    before = resident("self")
    opening = time.perf_counter()
    store = DiskStore(folder)
    opened = time.perf_counter()
    try:
        entry = (resident("self") - before) / len(store.index)
        keys = random.Random(1).sample(list(store.index), min(GETS, len(store.index)))
        took = []
        for _ in range(2):
            begun = time.perf_counter()
            found = sum(bool(store.get(key)) for key in keys)
            took.append((time.perf_counter() - begun) / len(keys) * 1e6)
            if found < ENOUGH * len(keys):
                raise ValueError(f"{len(keys) - found} of {len(keys)} entries are not at hand")
    finally:
        store.close()
    return {
        "read": read - started,
        "lines": lines - read,
        "open": opened - opening,
        "entry": entry,
        "far": took[0],
        "near": took[1],
    }


if __name__ == "__main__":
    print(orjson.dumps(measure(Path(sys.argv[1]))).decode())
