"""The runs that are known."""

from __future__ import annotations

import time

from sglang_cached_addon.service.runs import Runs


def test_forgotten() -> None:
    """A run that is not used for so long is forgotten; one that is, is not."""
    runs, now = Runs(ttl=100.0), time.time()
    old, new = runs.use("old", now - 200), runs.use("new", now - 50)
    assert [run.name for run in runs] == ["new"]
    assert (runs.get("old"), runs.get("new")) == (None, new)
    assert old.is_over
    assert runs.use("old", now) is not old


def test_changed() -> None:
    """A run is begun anew in its place, and a deleted one is over."""
    runs = Runs()
    run = runs.use("a", time.time())
    run.places.take(1, 0)
    runs.rewind(run)
    assert (run.places.count, run.rewinds, run.is_fresh) == (0, 1, False)
    assert runs.begin("a") is run
    assert (run.rewinds, run.is_fresh) == (2, True)
    assert runs.delete("a") is run
    assert run.is_over
    assert runs.delete("a") is None
    assert runs.begin("b").calls == 0
