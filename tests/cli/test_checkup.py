"""What the doctor looks at, on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sglang_cached_addon.cli.checkup import Patient, examine
from sglang_cached_addon.cli.diagnosis import Finding, State
from sglang_cached_addon.store.files import lock, note


def found(folder: Path, check: str, **more: str) -> Finding:
    """The finding of one check."""
    return next(each for each in examine(Patient(folder, **more)) if each.check == check)  # type: ignore[arg-type]


def test_folder(tmp_path: Path) -> None:
    """Whether a folder can be used is seen without touching it."""
    assert "first start" in found(tmp_path / "a" / "b", "folder").text
    assert not (tmp_path / "a").exists()
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        assert found(path, "folder").state is State.FAIL
    kept = tmp_path / "kept"
    kept.mkdir(mode=0o700)
    assert found(kept, "folder").state is State.OK
    (kept / "state.json").write_text("{}")
    (kept / "state.json").chmod(0o644)
    assert "can read state.json" in found(kept, "folder").text
    (kept / "state.json").chmod(0o600)
    kept.chmod(0o755)
    assert "can read the folder" in found(kept, "folder").text
    # It is not the cache's alone, and so not to be closed by it.
    (kept / "other").touch()
    assert found(kept, "folder").state is State.OK


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder in which nothing can be stored fails."""
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "below"):
        assert found(path, "folder").state is State.FAIL


def test_lock(tmp_path: Path) -> None:
    """Who has the folder is told, and whether that process lives; it keeps the folder."""
    assert "No process" in found(tmp_path, "lock").text
    handle = lock(tmp_path)
    try:
        assert f"Process {os.getpid()} " in found(tmp_path, "lock").text
        note(handle, "http://127.0.0.1:1")
        assert found(tmp_path, "lock").state is State.FAIL
        ended = subprocess.Popen(["true"])
        ended.wait()
        os.ftruncate(handle, 0)
        os.pwrite(handle, b"%d\n" % ended.pid, 0)
        assert "no process of this machine" in found(tmp_path, "lock").text
    finally:
        os.close(handle)


def test_clock(tmp_path: Path) -> None:
    """Files of tomorrow tell of a clock that goes wrong."""
    journal = tmp_path / "cache.jsonl"
    journal.touch()
    assert "agrees with what is stored" in found(tmp_path, "clock").text
    os.utime(journal, (4e9, 4e9))
    assert found(tmp_path, "clock").state is State.WARN
