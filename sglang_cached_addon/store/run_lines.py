"""The lines of `runs.jsonl`: the places that runs have taken, and what is counted of them.

One JSON object a line, each with a checksum as in the journal:

    {"v":4,"run":"a","at":<unix s>,"taken":{"<pool>":"0-2+4"},"sum":"<8 hex>"}
    {"v":4,"run":"a","totals":[<first>,<last>,<calls>,<reused>,<generated>],"sum":"<8 hex>"}
    {"v":4,"run":"a","rewound":<unix s>,"fresh_since":<unix s or null>,"sum":"<8 hex>"}
    {"v":4,"run":"a","deleted":true,"sum":"<8 hex>"}

A pool is 15 hexadecimal digits of its key; of what is said of one, the last counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import orjson

from sglang_cached_addon.core import places, runs
from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.core.places import Pool
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store.journal.lines import BROKEN, is_sealed, seal

logger = logging.getLogger(__name__)

_PIECE = 1000
"""Pools that stand in one line of a file that is written anew."""


def line(name: str, **members: Any) -> bytes:
    """What is told of a run."""
    return seal(orjson.dumps({"v": FORMAT_VERSION, "run": name, **members}))


def totals(run: Run) -> bytes:
    """The line of what is counted of a run."""
    times = round(run.first, 3), round(run.last, 3)
    return line(run.name, totals=[*times, run.calls, run.reused, run.generated])


def taken(run: Run, pools: Iterable[Pool]) -> bytes:
    """The line of what is taken of these pools."""
    spans = {f"{pool:015x}": places.written(run.places[pool]) for pool in pools}
    return line(run.name, at=round(run.last, 3), taken=spans)


def whole(known: Iterable[Run]) -> Iterator[bytes]:
    """The lines of a file that is written anew."""
    for run in known:
        if run.fresh_since > -inf:
            yield line(run.name, rewound=round(run.first, 3), fresh_since=run.fresh_since)
        pools = iter(run.places)
        while piece := list(islice(pools, _PIECE)):
            yield taken(run, piece)
        yield totals(run)


def read(path: Path) -> dict[str, Run]:
    """The runs of a file; broken lines are told of, and left out."""
    found: dict[str, Run] = {}
    broken = 0
    try:
        with open(path, "rb") as file:
            for each in file:
                try:
                    _take(found, each)
                except BROKEN:
                    broken += 1
    except FileNotFoundError:
        return {}
    if broken:
        logger.warning("%s: %d broken lines are not used", path, broken)
    return found


def _take(found: dict[str, Run], each: bytes) -> None:
    """Takes a line. Raises ValueError, KeyError or TypeError for a broken one."""
    if not is_sealed(each):
        raise ValueError("no checksum, or a wrong one")
    record = orjson.loads(each)
    if record["v"] != FORMAT_VERSION:
        raise ValueError("another format version")
    name = runs.checked(record["run"])
    if record.get("deleted"):
        found.pop(name, None)
        return
    run = found.get(name)
    if run is None:
        at = float(record.get("at") or record.get("rewound") or 0.0)
        run = found[name] = Run(name, at, at)
    if "rewound" in record:
        fresh = record["fresh_since"]
        run.rewind(-inf if fresh is None else float(fresh))
        run.last = max(run.last, float(record["rewound"]))
    if "totals" in record:
        first, last, run.calls, run.reused, run.generated = record["totals"]
        run.first, run.last = float(first), float(last)
    if "at" in record:
        run.last = max(run.last, float(record["at"]))
    for pool, spans in record.get("taken", {}).items():
        run.places[int(pool, 16)] = places.read(spans)
