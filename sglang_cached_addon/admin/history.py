"""What was counted over time: `/cache/history`, from which the page draws its charts.

Pure: the clock is an argument. Keeps a row of plain numbers now and then, some 400 kB at most, so
that no call pays for it. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from sglang_cached_addon.assembly import Parts

SECONDS = 10.0
"""How long it is from one row to the next."""

RECENT, OLDER, STEP = 360, 288, 30
"""How many rows are kept: an hour of them, and a day of each 30th one."""

NAMES = (
    "hits", "partial_hits", "misses", "collapsed", "denied", "bypasses", "samples_from_cache",
    "samples_from_upstream", "tokens_saved", "upstream_seconds_saved", "fetches_in_flight",
    "followers", "num_keys", "total_responses",
)  # fmt: skip
"""The columns behind the time, as `/cache/stats` calls them."""

Row = tuple[float, ...]
"""A Unix time, and what was counted by then."""


class History:
    """The past of an open cache."""

    def __init__(self, parts: Parts, clock: Callable[[], float]) -> None:
        """`clock` has the Unix time."""
        self._parts = parts
        self._clock = clock
        self._since = clock()
        self._recent: deque[Row] = deque(maxlen=RECENT)
        self._older: deque[Row] = deque(maxlen=OLDER)
        self._steps = 0
        self.note()

    def note(self) -> None:
        """Keeps what is counted by now."""
        row = self._row()
        self._recent.append(row)
        if self._steps % STEP == 0:
            self._older.append(row)
        self._steps += 1

    def as_json(self, after: float = -inf) -> dict[str, Any]:
        """The rows behind a time, and one of now."""
        first = self._recent[0][0]
        rows = [*(row for row in self._older if row[0] < first), *self._recent]
        return {
            "since": self._since,
            "names": NAMES,
            "points": [row for row in rows if row[0] > after],
            "present": self._row(),
        }

    def _row(self) -> Row:
        counters, flights = self._parts.exchange.counters, self._parts.service.flights
        index = self._parts.store.index
        return (
            self._clock(),
            counters.hits,
            counters.partial_hits,
            counters.misses,
            counters.collapsed,
            counters.denied,
            sum(counters.bypasses.values()),
            counters.samples_from_cache,
            counters.samples_from_upstream,
            counters.tokens_saved,
            round(counters.upstream_seconds_saved, 6),
            len(flights),
            flights.waiting,
            index.entries,
            index.samples,
        )
