"""`runs.jsonl`: the places that runs have taken, as they outlive the process.

What the event loop notes, a thread writes, a few times a second; where most of the file is of no
account any more, it is written anew. What stands in it, `run_lines` knows. Belongs to the process
that has the folder's lock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

from sglang_cached_addon.core.places import Pool
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store import run_lines
from sglang_cached_addon.store.files import CHOOSE_ANOTHER, StoreError, private, replace

logger = logging.getLogger(__name__)

NAME = "runs.jsonl"

FLUSH_SECONDS = 0.03
"""How long notes are gathered before they are written."""

SYNC_SECONDS, TOTALS_SECONDS = 1.0, 10.0
"""At most so often the file is synced, and the totals of runs are written."""

SPARE_BYTES = 1 << 20
"""So many bytes more than it had when it was written anew, and twice as many, the file may have."""


class RunLog:
    """The runs of one folder."""

    def __init__(
        self, folder: Path, fsync: Fsync, ttl: float = inf, spare: int = SPARE_BYTES
    ) -> None:
        """Reads what is there, but for runs that were not used for `ttl` seconds; raises
        `StoreError`. `spare` is as `SPARE_BYTES`."""
        self.path = folder / NAME
        self._fsync = fsync
        self._ttl = ttl
        self._spare = spare
        self._notes: deque[tuple[Run, Iterable[Pool] | bytes]] = deque()
        """What is to be written: pools of which other places are taken, and lines behind which
        nothing counts that was noted of their runs before."""
        self._is_noted = threading.Event()
        self._is_closing = threading.Event()
        self._owed: set[Run] = set()
        """Runs whose totals have changed since they were written."""
        self._totals_at = self._synced_at = 0.0
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

    def note(self, run: Run, pools: Iterable[Pool]) -> None:
        """Other places of these pools are taken now."""
        self._notes.append((run, pools))
        if not self._is_noted.is_set():
            self._is_noted.set()

    def rewound(self, run: Run) -> None:
        """All places of a run are free again."""
        fresh = run.fresh_since if run.fresh_since > -inf else None
        self._say(run, rewound=time.time(), fresh_since=fresh)

    def deleted(self, run: Run) -> None:
        """A run is no more."""
        self._say(run, deleted=True)

    def _say(self, run: Run, **members: Any) -> None:
        self._notes.append((run, run_lines.line(run.name, **members)))
        self._is_noted.set()

    def close(self) -> None:
        """Writes what is not yet."""
        self._is_closing.set()
        self._is_noted.set()
        self._thread.join()
        self._file.close()

    # The thread

    def _write(self) -> None:
        is_last = False
        while not is_last:
            self._is_noted.wait(SYNC_SECONDS if self._owed else None)
            self._is_closing.wait(FLUSH_SECONDS)
            self._is_noted.clear()
            is_last = self._is_closing.is_set()  # before what there is by then is taken
            said, changed = self._take()
            self._owed |= changed.keys()
            lines = [line for _, line in said] + [run_lines.taken(*x) for x in changed.items()]
            is_due = time.monotonic() > self._totals_at + TOTALS_SECONDS
            self._owed = {run for run in self._owed if not run.is_over}
            if self._owed and (is_due or is_last):
                lines += map(run_lines.totals, self._owed)
                self._owed, self._totals_at = set(), time.monotonic()
            try:
                self._put(b"".join(lines))
            except OSError as e:
                self._notes.extendleft(reversed([*said, *changed.items()]))
                if not self._has_failed:
                    logger.warning("cannot write %s: %s; trying on", self.path, e.strerror)
                self._has_failed = True
                self._is_closing.wait(SYNC_SECONDS)

    def _take(self) -> tuple[list[tuple[Run, bytes]], dict[Run, set[Pool]]]:
        """The lines that are to be written, and behind them the pools."""
        said: list[tuple[Run, bytes]] = []
        changed: dict[Run, set[Pool]] = {}
        while self._notes:
            run, what = self._notes.popleft()
            if isinstance(what, bytes):
                changed.pop(run, None)
                said.append((run, what))
            elif not run.is_over:
                changed.setdefault(run, set()).update(what)
        return said, changed

    def _put(self, data: bytes) -> None:
        start = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(start)
            raise
        self._has_failed = False
        is_due = time.monotonic() > self._synced_at + SYNC_SECONDS
        if self._fsync is Fsync.ALWAYS or (self._fsync is Fsync.INTERVAL and is_due):
            os.fdatasync(self._file.fileno())
            self._synced_at = time.monotonic()
        if self._file.tell() > 2 * self._least + self._spare:
            self._rewritten()
            self._file.close()
            self._file = open(self.path, "ab", buffering=0, opener=private)  # noqa: SIM115
            self._least = self._file.tell()

    def _rewritten(self) -> dict[str, Run]:
        """The runs of the file, which then has nothing else in it."""
        since = time.time() - self._ttl
        found = {run.name: run for run in run_lines.read(self.path).values() if run.last >= since}
        if self.path.exists():
            replace(self.path, b"".join(run_lines.whole(found.values())))
        return found
