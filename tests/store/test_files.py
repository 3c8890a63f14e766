"""Who may read what is in the folder."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.files import Owner, lock, note, owner_of


def modes(folder: Path) -> dict[str, int]:
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    return {**found, ".": stat.S_IMODE(folder.stat().st_mode)}


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def use(folder: Path) -> None:
    """Makes each file that there is to make."""
    store = DiskStore(folder)
    store.append(Addition(b"a" * 32, "chat", b"{}", [Sample(b'{"x":1}', 1.5, 0.5, 3)]))
    store.state.save({"a": 1})
    store.state.load()
    store.state.reject("odd")
    store.state.save({"a": 1})
    store.close()
    with open(folder / "cache.jsonl", "ab") as file:
        file.write(b'broken\n{"v":1}\ntorn')
    store = DiskStore(folder)
    store.journal.compact().result(60)
    store.close()


def test_for_its_owner_alone(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Folder and files are the owner's alone, whatever the umask."""
    monkeypatch.setattr("sglang_cached_addon.store.journal.kept.INDEX_BYTES", 0)
    folder = tmp_path / "cache"
    use(folder)
    found = modes(folder)
    assert found.pop(".") == 0o700
    assert set(found) == {
        "cache.jsonl", "cache.jsonl.broken", "cache.jsonl.torn", "cache.jsonl.v1", "cache.index",
        "cache.lock", "state.json", "state.json.broken",
    }  # fmt: skip
    assert set(found.values()) == {0o600}
    assert "could read" not in caplog.text


def test_what_is_there_already(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is there already becomes the owner's alone, which is logged once."""
    folder = tmp_path / "cache"
    use(folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    caplog.clear()
    for _ in range(2):
        DiskStore(folder).close()
    assert set(modes(folder).values()) == {0o600, 0o700}
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert str(folder) in said
    assert "the folder" in said
    assert "cache.jsonl.broken" in said


@pytest.mark.parametrize("kind", ["others", "sticky"])
def test_a_folder_that_others_use(kind: str, tmp_path: Path) -> None:
    """A folder that others use, as `/tmp` or a home, keeps its mode, and so do their files."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777 if kind == "sticky" else 0o755)
    if kind == "others":
        (folder / "notes.txt").write_text("theirs")
        (folder / "notes.txt").chmod(0o644)
    DiskStore(folder).close()
    found = modes(folder)
    assert found.pop(".") == (0o1777 if kind == "sticky" else 0o755)
    assert found.pop("notes.txt", 0o644) == 0o644
    assert set(found.values()) == {0o600}


def test_lock(tmp_path: Path) -> None:
    """A folder is taken until its lock is released, and its file says whose it is and where that
    process listens."""
    assert owner_of(tmp_path) is None
    held = lock(tmp_path)
    assert owner_of(tmp_path) == Owner(f"{os.getpid()}", "")
    for url in ("http://127.0.0.1:12345", "http://[::1]:1"):
        note(held, url)
        assert owner_of(tmp_path) == Owner(f"{os.getpid()}", url)
    os.close(held)
    assert owner_of(tmp_path) is None
    os.close(lock(tmp_path))
    assert (tmp_path / "cache.lock").read_text() == f"{os.getpid()}\n"


def test_who_looks_keeps_nobody_out(tmp_path: Path) -> None:
    """A folder can be taken while others look whose it is."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            owner_of(tmp_path)

    os.close(lock(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(look)
        try:
            for _ in range(300):
                os.close(lock(tmp_path))
        finally:
            over.set()
