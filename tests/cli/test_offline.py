"""A folder that is asked without its proxy."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from sglang_cached_addon.cli.offline import Offline
from sglang_cached_addon.cli.reach import CacheError
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.files import lock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one sample of a model that nobody knows."""
    store = DiskStore(tmp_path)
    sample = Sample(b'{"x":1}', time.time(), 0.5, 3)
    store.append(Addition(b"a" * 32, "sglang-generate", b"{}", [sample]))
    store.close()
    (tmp_path / "runs.jsonl").touch()
    return tmp_path


def test_looking_changes_nothing(folder: Path) -> None:
    """A folder that is looked at stays as it is, and whoever has it keeps it."""
    held = lock(folder)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    with closing(Offline(folder, changes=False)) as cache:
        assert cache.ask("GET", "/cache/stats")["total_responses"] == 1
        assert cache.ask("GET", "/cache/info")["dialects"]["sglang-generate"] == 1
        with pytest.raises(CacheError, match="readonly"):
            cache.ask("POST", "/cache/clear")
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before
    os.close(held)


def test_changing_needs_the_folder(folder: Path) -> None:
    """A folder that is to be changed must not be another process's."""
    held = lock(folder)
    with pytest.raises(CacheError, match=f"in use by process {os.getpid()};"):
        Offline(folder, changes=True)
    os.close(held)
    with closing(Offline(folder, changes=True)) as cache:
        assert cache.ask("POST", "/cache/clear", {"model": "all"})["cleared_responses"] == 1
    assert (folder / "cache.jsonl").read_bytes() == b""


def test_errors(folder: Path) -> None:
    """What a route refuses, and what is none, is told."""
    with closing(Offline(folder, changes=False)) as cache:
        with pytest.raises(CacheError, match="takes \\?model="):
            cache.ask("POST", "/cache/clear", {"model": ""})
        with pytest.raises(CacheError, match="there is no run x"):
            cache.ask("GET", "/cache/runs/x")
        with pytest.raises(CacheError, match="/cache/none"):
            cache.ask("GET", "/cache/none")


def test_a_document_that_makes_no_sense(folder: Path) -> None:
    """What is known of the server and makes no sense is told, and left for its proxy to judge."""
    (folder / "state.json").write_text('{"url": 1}')
    with pytest.raises(CacheError, match="'url' is no text"):
        Offline(folder, changes=False)
    assert (folder / "state.json").read_text() == '{"url": 1}'
