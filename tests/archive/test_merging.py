"""Folders made one."""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.archive.merging import merge
from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.store import run_lines
from sglang_cached_addon.store.run_log import RunLog
from sglang_cached_addon.store.state import StateFile
from tests.archive.test_writing import A, B, pools, sample, take


def test_merge(tmp_path: Path) -> None:
    """Pools have the first folder's samples, then what the next ones have more; a new folder goes
    on as the first one would, and the sources stay as they are."""
    one, two, target = (tmp_path / name for name in ("one", "two", "target"))
    take(one, Addition(A, "chat", b'{"q":1}', [sample(1), sample(2)]))
    take(
        two,
        Addition(A, "chat", b'{"q":1}', [sample(2), sample(3)]),
        Addition(B, "chat", b"", [sample(4)]),
    )
    with open(two / "cache.jsonl", "ab") as file:
        file.write(b"broken\n")
    StateFile(one).save({"url": "http://one", "models": {"f": "tiny"}})
    StateFile(two).save({"url": "http://two", "models": {"g": "big"}})
    log = RunLog(one, Fsync.NEVER)
    run = log.runs["monday"] = Run("monday", 1.0, 2.0)
    run.places.take(5, 0)
    log.note(run, (5,))
    log.close()
    before = {path: path.read_bytes() for folder in (one, two) for path in folder.iterdir()}
    merged = merge([one, two], target)
    assert (merged.taken.entries, merged.taken.samples, merged.taken.present) == (3, 4, 1)
    assert (merged.runs, merged.broken) == (1, 1)
    found = pools(target)
    assert found[A].samples == [sample(1), sample(2), sample(3)]
    assert found[B].samples == [sample(4)]
    known = StateFile(target).load()
    assert known == {"url": "http://one", "models": {"f": "tiny", "g": "big"}}
    assert list(run_lines.read(target / "runs.jsonl")["monday"].places[5]) == [0]
    assert {path: path.read_bytes() for path in before} == before
    again = merge([two, one], target)
    assert (again.taken.samples, again.taken.present, again.runs) == (0, 5, 0)
    assert StateFile(target).load() == known
