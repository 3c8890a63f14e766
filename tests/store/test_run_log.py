"""Places of runs, as they outlive the process."""

from __future__ import annotations

import random
import time
from math import inf
from pathlib import Path

import pytest

from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store import run_log
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.run_log import RunLog
from tests.conftest import until


def open_log(folder: Path, ttl: float = inf, spare: int = run_log.SPARE_BYTES) -> RunLog:
    return RunLog(folder, Fsync.NEVER, ttl, spare)


def use(log: RunLog, name: str) -> Run:
    now = time.time()
    return log.runs.setdefault(name, Run(name, now, now))


def taken(run: Run) -> dict[int, list[int]]:
    """What is taken of each pool."""
    return {pool: list(run.places[pool]) for pool in run.places}


def take(log: RunLog, run: Run, pool: int, place: int) -> None:
    assert run.places.take(pool, place)
    log.note(run, (pool,))


def test_reopened(tmp_path: Path) -> None:
    """What was taken, given back, rewound and deleted is so after a restart, however often that
    is, and whatever is written anew meanwhile."""
    chance, expected = random.Random(1), {}
    for _ in range(6):
        log = open_log(tmp_path)
        assert {name: taken(run) for name, run in log.runs.items()} == expected
        for _ in range(2000):
            run, pool, what = use(log, chance.choice("abc")), chance.randrange(50), chance.random()
            if what < 0.7:
                take(log, run, pool, next(run.places.free(pool, 10**6)))
            elif what < 0.99:
                place = chance.randrange(8)
                if run.places.give_back(pool, place):
                    log.note(run, (pool,))
            elif what < 0.995:
                run.rewind()
                log.rewound(run)
            else:
                del log.runs[run.name]
                run.is_over = True
                log.deleted(run)
        log.close()
        expected = {name: taken(run) for name, run in log.runs.items() if run.places.count}
        for name in set(log.runs) - set(expected):
            expected[name] = {}


def test_sums(tmp_path: Path) -> None:
    """The sums of a run, and since when it is fresh, are there after a restart."""
    log = open_log(tmp_path)
    run = use(log, "a")
    run.calls, run.reused, run.generated = 3, 1, 2
    run.rewind(1234.5)
    log.rewound(run)
    take(log, run, 1, 0)
    log.close()
    log = open_log(tmp_path)
    found = log.runs["a"]
    assert found.as_json() == run.as_json()
    assert found.fresh_since == 1234.5
    log.close()


def test_size(tmp_path: Path) -> None:
    """A place takes no more than 200 bytes, though each is of another pool, and its run has a long
    name; what is of no account any more is taken out."""
    log = open_log(tmp_path)
    run, count = use(log, "x" * 100), 500
    for pool in range(count):
        take(log, run, pool << 20, 123)
    log.close()
    assert log.path.stat().st_size <= 200 * count
    log = open_log(tmp_path, spare=(spare := 1 << 14))
    run, least = log.runs[run.name], log.path.stat().st_size
    for _ in range(20):
        size = log.path.stat().st_size
        for pool in range(count):
            run.places.give_back(pool << 20, 123)
            log.note(run, (pool << 20,))
            take(log, run, pool << 20, 123)
        until(lambda size=size: log.path.stat().st_size != size)
    log.close()
    assert log.path.stat().st_size <= 4 * least + spare


def test_ttl(tmp_path: Path) -> None:
    """A run that was not used for so long is forgotten."""
    log = open_log(tmp_path)
    for name, age in (("old", 100.0), ("new", 10.0)):
        run = use(log, name)
        run.last -= age
        take(log, run, 1, 0)
    log.close()
    log = open_log(tmp_path, ttl=50)
    assert set(log.runs) == {"new"}
    log.close()


def test_broken_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut at any place, the file gives what its whole lines say; and other bytes do no harm."""
    log = open_log(tmp_path)
    run = use(log, "a")
    take(log, run, 1, 0)
    log.close()
    log = open_log(tmp_path)
    take(log, log.runs["a"], 1, 1)
    log.close()
    whole = log.path.read_bytes()
    for end in range(0, len(whole), 7):
        log.path.write_bytes(whole[:end])
        log = open_log(tmp_path)
        assert (taken(log.runs["a"]) if log.runs else {}) in ({}, {1: [0]}, {1: [0, 1]})
        log.close()
    for junk in (b"{}\n", b"\xff\n", b'{"v":4}\n', whole.replace(b'"1', b'"2')):
        log.path.write_bytes(junk)
        open_log(tmp_path).close()
    assert "broken lines are not used" in caplog.text


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    """What cannot be opened says what to do."""
    (tmp_path / run_log.NAME).mkdir()
    with pytest.raises(StoreError, match="--cache-path"):
        open_log(tmp_path)
