"""`runs.jsonl`: the places that runs have taken, as they outlive the process.

One JSON object a line, each with a checksum as in the journal:

    {"v":4,"run":"a","at":<unix s>,"taken":{"<pool>":"0-2"},"free":{"<pool>":"5"},"sum":"<8 hex>"}
    {"v":4,"run":"a","totals":[<first>,<last>,<calls>,<reused>,<generated>],"sum":"<8 hex>"}
    {"v":4,"run":"a","rewound":<unix s>,"fresh_since":<unix s or null>,"sum":"<8 hex>"}
    {"v":4,"run":"a","deleted":true,"sum":"<8 hex>"}

A pool is 15 hexadecimal digits of its key. What the event loop notes, a thread writes, a few times
a second; where most of the file is of no account any more, it is written anew. Belongs to the
process that has the folder's lock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from math import inf
from pathlib import Path
from typing import Any

import orjson

from sglang_cached_addon.core import runs
from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.core.runs import Pool, Run
from sglang_cached_addon.store.files import CHOOSE_ANOTHER, StoreError, private, replace
from sglang_cached_addon.store.journal.lines import BROKEN, is_sealed, seal

logger = logging.getLogger(__name__)

NAME = "runs.jsonl"

FLUSH_SECONDS = 0.03
"""How long notes are gathered before they are written."""

TOTALS_SECONDS = 1.0
"""At most so often the totals of runs are written, and the file is synced."""

SPARE_BYTES = 1 << 20
"""So many bytes more than it had when it was written anew, and twice as many, the file may have."""

_PIECE = 1000
"""Pools that stand in one line of a file that is written anew."""


Note = tuple[Run, Pool, int, bool]
"""A place of a run, and whether it was taken, or given back."""


class RunLog:
    """The runs of one folder."""

    def __init__(self, folder: Path, fsync: Fsync, ttl: float = inf) -> None:
        """Reads what is there, but for runs that were not used for `ttl` seconds; raises
        `StoreError`."""
        self.path = folder / NAME
        self._fsync = fsync
        self._ttl = ttl
        self._notes: deque[Note | bytes] = deque()
        """What is to be written: notes, and lines."""
        self._is_noted = threading.Event()
        self._is_closing = threading.Event()
        self._owed: set[Run] = set()
        """Runs whose totals have changed since they were written."""
        self._totals_at = 0.0
        self._has_failed = False
        try:
            self.runs = self._rewritten()
            """The runs that are known, by name; it belongs to the event loop."""
            self._file = open(self.path, "ab", buffering=0, opener=private)  # noqa: SIM115
            self._least = self._file.tell()
        except OSError as e:
            raise StoreError(f"cannot use {self.path}: {e.strerror}; {CHOOSE_ANOTHER}") from e
        self._thread = threading.Thread(target=self._write, name="sglang-cached runs", daemon=True)
        self._thread.start()

    # For the event loop

    def note(self, run: Run, pool: Pool, place: int, *, is_taken: bool) -> None:
        """A place was taken, or given back."""
        self._add((run, pool, place, is_taken))

    def rewound(self, run: Run) -> None:
        """All places of a run are free again."""
        fresh = run.fresh_since if run.fresh_since > -inf else None
        self._add(_line(run.name, rewound=time.time(), fresh_since=fresh))

    def deleted(self, name: str) -> None:
        """A run is no more."""
        self._add(_line(name, deleted=True))

    def _add(self, note: Note | bytes) -> None:
        self._notes.append(note)
        if not self._is_noted.is_set():
            self._is_noted.set()

    def close(self) -> None:
        """Writes what is not yet."""
        self._is_closing.set()
        self._is_noted.set()
        self._thread.join()
        self._file.close()

    # The thread

    def _write(self) -> None:
        while not self._is_closing.is_set():
            self._is_noted.wait(TOTALS_SECONDS if self._owed else None)
            self._is_closing.wait(FLUSH_SECONDS)
            self._is_noted.clear()
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            self._owed |= {note[0] for note in notes if isinstance(note, tuple)}
            lines = list(_lines(notes))
            is_due = time.monotonic() > self._totals_at + TOTALS_SECONDS
            self._owed = {run for run in self._owed if not run.is_over}
            if self._owed and (is_due or self._is_closing.is_set()):
                lines += map(_totals, self._owed)
                self._owed, self._totals_at = set(), time.monotonic()
            try:
                self._put(b"".join(lines), is_due)
            except OSError as e:
                self._notes.extendleft(reversed(notes))
                if not self._has_failed:
                    logger.warning("cannot write %s: %s; trying on", self.path, e.strerror)
                self._has_failed = True
                self._is_closing.wait(TOTALS_SECONDS)

    def _put(self, data: bytes, is_due: bool) -> None:
        start = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(start)
            raise
        self._has_failed = False
        if self._fsync is Fsync.ALWAYS or (self._fsync is Fsync.INTERVAL and is_due):
            os.fdatasync(self._file.fileno())
        if self._file.tell() > 2 * self._least + SPARE_BYTES:
            self._rewritten()
            self._file.close()
            self._file = open(self.path, "ab", buffering=0, opener=private)  # noqa: SIM115
            self._least = self._file.tell()

    def _rewritten(self) -> dict[str, Run]:
        """The runs of the file, which then has nothing else in it."""
        since = time.time() - self._ttl
        found = {run.name: run for run in _read(self.path).values() if run.last >= since}
        if self.path.exists():
            replace(self.path, b"".join(_whole(found)))
        return found


def _line(name: str, **members: Any) -> bytes:
    return seal(orjson.dumps({"v": FORMAT_VERSION, "run": name, **members}))


def _totals(run: Run) -> bytes:
    totals = [round(run.first, 3), round(run.last, 3), run.calls, run.reused, run.generated]
    return _line(run.name, totals=totals)


def _spans(places: Mapping[Pool, Iterable[int]]) -> dict[str, str]:
    return {f"{pool:015x}": runs.written(sorted(some)) for pool, some in places.items()}


def _lines(notes: Iterable[Note | bytes]) -> Iterator[bytes]:
    """The lines of notes in their order; of what was noted of one place, the last counts."""
    for run, some in groupby(notes, lambda note: note[0] if isinstance(note, tuple) else None):
        if run is None:
            yield from (line for line in some if isinstance(line, bytes))
            continue
        last = {note[1:3]: note[3] for note in some if isinstance(note, tuple)}
        sets: dict[bool, dict[Pool, set[int]]] = {True: {}, False: {}}
        for (pool, place), is_taken in last.items():
            sets[is_taken].setdefault(pool, set()).add(place)
        members = {"taken": _spans(sets[True]), "free": _spans(sets[False])}
        at = round(run.last, 3)
        yield _line(run.name, at=at, **{name: spans for name, spans in members.items() if spans})


def _whole(known: Mapping[str, Run]) -> Iterator[bytes]:
    """The lines of a file that is written anew."""
    for run in known.values():
        if run.fresh_since > -inf:
            yield _line(run.name, rewound=round(run.first, 3), fresh_since=run.fresh_since)
        places = iter(run.places)
        while piece := dict(islice(places, _PIECE)):
            yield _line(run.name, at=round(run.last, 3), taken=_spans(piece))
        yield _totals(run)


def _read(path: Path) -> dict[str, Run]:
    """The runs of a file; broken lines are told of, and left out."""
    found: dict[str, Run] = {}
    broken = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    _take(found, line)
                except BROKEN:
                    broken += 1
    except FileNotFoundError:
        return {}
    if broken:
        logger.warning("%s: %d broken lines are not used", path, broken)
    return found


def _take(found: dict[str, Run], line: bytes) -> None:
    """Takes a line. Raises ValueError, KeyError or TypeError for a broken one."""
    if not is_sealed(line):
        raise ValueError("no checksum, or a wrong one")
    record = orjson.loads(line)
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
