"""What is taken into a folder: what it lacks, in its order, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.archive.writing import Taken, Writing, without
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.journal.snapshot import Snapshot
from sglang_cached_addon.store.state import StateFile
from tests.tables import each

A, B = b"a" * 32, b"b" * 32


def sample(number: int, at: float = 1.0, seconds: float = 0.5) -> Sample:
    return Sample(b'{"x":%d}' % number, at, seconds, number)


def take(folder: Path, *pools: Addition) -> Taken:
    with Writing(folder) as writing:
        for pool in pools:
            writing.take(pool)
        return writing.finish()


def pools(folder: Path) -> dict[bytes, Addition]:
    return {pool.key: pool for pool in Snapshot(folder / "cache.jsonl").pools()}


def test_once_and_again(tmp_path: Path) -> None:
    """All is there as it was, and a second time nothing is added."""
    folder = tmp_path / "new"
    wanted = {
        A: Addition(
            A, "chat", b'{"q":1}', [sample(1), sample(2), sample(3, 2.0), sample(4, 2.0, 9)]
        ),
        B: Addition(B, "chat", b"", [Sample(b"{}", 5.0, 0.1, 2, b"[[2,null]]")]),
    }
    assert take(folder, *wanted.values()) == Taken(2, 5, 0)
    assert pools(folder) == wanted
    before = (folder / "cache.jsonl").read_bytes()
    assert take(folder, *wanted.values()) == Taken(0, 0, 5)
    assert (folder / "cache.jsonl").read_bytes() == before
    assert folder.stat().st_mode & 0o777 == 0o700


def test_behind_what_is_there(tmp_path: Path) -> None:
    """What is not there comes behind what is, and what was asked is kept once."""
    take(tmp_path, Addition(A, "chat", b'{"q":1}', [sample(1), sample(2)]))
    more = Addition(A, "chat", b'{"q":1}', [sample(3), sample(2), sample(1, 7.0)])
    assert take(tmp_path, more) == Taken(1, 2, 1)
    found = pools(tmp_path)[A]
    assert found.samples == [sample(1), sample(2), sample(3), sample(1, 7.0)]
    assert (tmp_path / "cache.jsonl").read_bytes().count(b'"call"') == 1


@each(
    ("samples", "present", "is_dated", "missing"),
    [
        ([sample(1), sample(1)], [], True, [sample(1), sample(1)]),
        ([sample(1), sample(1)], [sample(1)], True, [sample(1)]),
        ([sample(1)], [sample(1, 2.0)], True, [sample(1)]),
        ([sample(1)], [sample(1, 2.0)], False, []),
        ([sample(2), sample(1)], [sample(1), sample(2)], True, []),
    ],
)
def test_what_is_equal(
    samples: list[Sample], present: list[Sample], is_dated: bool, missing: list[Sample]
) -> None:
    """What was drawn twice is there twice; what is the same sample is there once."""
    assert without(samples, present, is_dated=is_dated) == missing


def test_variants_of_families(tmp_path: Path) -> None:
    """Which variants of calls there were is known once, whenever that was noted."""
    take(tmp_path, Addition(A, FAMILY, b"", [sample(1, 1.0)]))
    more = Addition(A, FAMILY, b"", [sample(1, 2.0), sample(2, 2.0)])
    assert take(tmp_path, more) == Taken()
    assert pools(tmp_path)[A].samples == [sample(1, 1.0), sample(2, 2.0)]


STATE = {"epochs": {"last": 3}, "models": {"f": "tiny"}}


def test_what_is_known_of_the_server(tmp_path: Path) -> None:
    """An empty folder learns all that the other cache knew; one that is not, only the names."""
    for name, first in (("new", False), ("used", True)):
        folder = tmp_path / name
        if first:
            take(folder, Addition(A, "chat", b"", [sample(1)]))
        with Writing(folder) as writing:
            writing.learn(STATE)
            writing.learn({"epochs": {"last": 9}, "models": {"g": "big", "f": "other"}})
            writing.finish()
        found = StateFile(folder).load()
        assert found["models"] == {"f": "tiny", "g": "big"}
        assert found.get("epochs") == (None if first else {"last": 3})


def test_a_folder_in_use(tmp_path: Path) -> None:
    """Another process's folder is refused."""
    with Writing(tmp_path), pytest.raises(StoreError, match="in use by process"):
        Writing(tmp_path)


def test_a_document_that_makes_no_sense(tmp_path: Path) -> None:
    """A folder is free again where what is known of its server cannot be read."""
    (tmp_path / "state.json").mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state\.json"):
            Writing(tmp_path)
