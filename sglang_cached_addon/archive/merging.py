"""Folders made one: the pools of each are taken into another folder, in the order of the folders.

The first one's server, its epochs and its runs go on in a folder that is new: its samples stand
there as they did. Of other folders, and in one that is not new, only the names of models are taken.
The sources may have a running proxy, and are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_cached_addon.archive.writing import Taken, Writing
from sglang_cached_addon.store import run_lines, run_log
from sglang_cached_addon.store.files import replace
from sglang_cached_addon.store.journal.snapshot import Snapshot
from sglang_cached_addon.store.state import StateFile


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of it."""

    taken: Taken
    runs: int
    """The runs of the first folder that go on."""
    broken: int
    """Lines that could not be read."""


def merge(sources: Sequence[Path], target: Path) -> Merged:
    """Takes the sources into the target, which is made if it is missing. Raises `StoreError` and
    OSError."""
    runs = broken = 0
    with Writing(target) as writing:
        for source in sources:
            if writing.is_empty:
                runs = _take_runs(source, target)
            writing.learn(_known(source))
            snapshot = Snapshot(source / "cache.jsonl")
            for pool in snapshot.pools():
                writing.take(pool)
            broken += snapshot.broken
        return Merged(writing.finish(), runs, broken)


def _known(folder: Path) -> dict[str, Any]:
    """What is known of a folder's server."""
    return StateFile(folder, is_ours=False).load()


def _take_runs(source: Path, target: Path) -> int:
    """Copies the runs of a folder, before its samples are read: what they have taken is there,
    then. How many there are."""
    runs = run_lines.read(source / run_log.NAME)
    if runs:
        replace(target / run_log.NAME, b"".join(run_lines.whole(runs.values())))
    return len(runs)
