"""The lines of `runs.jsonl`: the places that runs have taken, and what is counted of them.

One JSON object a line, each with a checksum as in the journal:

    {"v":4,"run":"a","at":<unix s>,"taken":{"<pool>":"0-2"},"free":{"<pool>":"5"},"sum":"<8 hex>"}
    {"v":4,"run":"a","totals":[<first>,<last>,<calls>,<reused>,<generated>],"sum":"<8 hex>"}
    {"v":4,"run":"a","rewound":<unix s>,"fresh_since":<unix s or null>,"sum":"<8 hex>"}
    {"v":4,"run":"a","deleted":true,"sum":"<8 hex>"}

A pool is 15 hexadecimal digits of its key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import orjson

from sglang_cached_addon.core import runs
from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.core.runs import Pool, Run
from sglang_cached_addon.store.journal.lines import BROKEN, is_sealed, seal

logger = logging.getLogger(__name__)

_PIECE = 1000
"""Pools that stand in one line of a file that is written anew."""


Note = tuple[Run, Sequence[Pool], Sequence[Sequence[int]], bool]
"""Places of a run, pool by pool, and whether they were taken, or given back."""


def line(name: str, **members: Any) -> bytes:
    """What is told of a run."""
    return seal(orjson.dumps({"v": FORMAT_VERSION, "run": name, **members}))


def totals(run: Run) -> bytes:
    """The line of what is counted of a run."""
    times = round(run.first, 3), round(run.last, 3)
    return line(run.name, totals=[*times, run.calls, run.reused, run.generated])


def _spans(places: Mapping[Pool, Iterable[int]]) -> dict[str, str]:
    return {f"{pool:015x}": runs.written(sorted(some)) for pool, some in places.items() if some}


_Last = dict[Run, tuple[dict[Pool, set[int]], dict[Pool, set[int]]]]
"""The places of runs that were given back last, and those that were taken last."""


def lines(notes: Iterable[Note | bytes]) -> Iterator[bytes]:
    """The lines of notes; of what was noted of one place, the last counts."""
    last: _Last = {}
    for note in notes:
        if isinstance(note, bytes):
            yield from _noted(last)
            last.clear()
            yield note
            continue
        run, pools, places, is_taken = note
        noted = last.get(run) or last.setdefault(run, ({}, {}))
        for pool, some in zip(pools, places, strict=True):
            noted[is_taken].setdefault(pool, set()).update(some)
            if pool in noted[not is_taken]:
                noted[not is_taken][pool].difference_update(some)
    yield from _noted(last)


def _noted(last: _Last) -> Iterator[bytes]:
    """A line for each run."""
    for run, (free, taken) in last.items():
        spans = {"taken": _spans(taken), "free": _spans(free)}
        spans = {name: some for name, some in spans.items() if some}
        yield line(run.name, at=round(run.last, 3), **spans)


def whole(known: Iterable[Run]) -> Iterator[bytes]:
    """The lines of a file that is written anew."""
    for run in known:
        if run.fresh_since > -inf:
            yield line(run.name, rewound=round(run.first, 3), fresh_since=run.fresh_since)
        places = iter(run.places)
        while piece := dict(islice(places, _PIECE)):
            yield line(run.name, at=round(run.last, 3), taken=_spans(piece))
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
        for place in runs.read(spans):
            run.places.take(int(pool, 16), place)
    for pool, spans in record.get("free", {}).items():
        for place in runs.read(spans):
            run.places.give_back(int(pool, 16), place)
