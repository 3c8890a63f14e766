"""What was counted over time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import orjson

from sglang_cached_addon.admin.history import NAMES, OLDER, RECENT, SECONDS, STEP, History
from sglang_cached_addon.assembly import Parts
from sglang_cached_addon.core.outcome import Saved
from tests.test_assembly import opened


class Clock:
    """Stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def look(tmp_path: Path, do: Callable[[Parts, Clock, History], None]) -> None:
    async def run() -> None:
        with opened(tmp_path) as parts:
            clock = Clock()
            do(parts, clock, History(parts, clock))

    asyncio.run(run())


def test_rows(tmp_path: Path) -> None:
    """There is a row of each time that was noted, the first one at the beginning, and one of now;
    who knows some already gets the others."""

    def do(parts: Parts, clock: Clock, history: History) -> None:
        parts.exchange.counters.hit(Saved(2, 30, 0.5))
        clock.now += SECONDS
        history.note()
        clock.now += 1
        found = history.as_json()
        assert found["names"] == NAMES
        assert found["since"] == 1000.0
        rows = [dict(zip(("time", *NAMES), row, strict=True)) for row in found["points"]]
        assert [row["time"] for row in rows] == [1000.0, 1010.0]
        assert [row["hits"] for row in rows] == [0, 1]
        assert rows[1]["samples_from_cache"] == 2
        assert rows[1]["tokens_saved"] == 30
        assert found["present"][:2] == (1011.0, 1)
        assert [row[0] for row in history.as_json(1000.0)["points"]] == [1010.0]
        assert history.as_json(1010.0)["points"] == []
        orjson.dumps(found)

    look(tmp_path, do)


def test_bound(tmp_path: Path) -> None:
    """An hour is kept in full and a day roughly, in the order of time, and nothing before."""

    def do(parts: Parts, clock: Clock, history: History) -> None:
        for _ in range(2 * OLDER * STEP):
            clock.now += SECONDS
            history.note()
        times = [row[0] for row in history.as_json()["points"]]
        assert times == sorted(set(times))
        assert times[-1] - times[0] >= 23.9 * 3600
        assert times[-RECENT:] == [clock.now - SECONDS * k for k in reversed(range(RECENT))]
        assert len(times) <= RECENT + OLDER

    look(tmp_path, do)
