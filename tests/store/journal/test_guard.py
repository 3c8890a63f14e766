"""One process has a folder, and its file stays where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.files import Owner, owner_of
from sglang_cached_addon.store.journal import Journal
from tests.conftest import until
from tests.store.journal.opened import A, B, C, line, opened, pool, read

HOLDER = """
import signal, sys
from pathlib import Path
from sglang_cached_addon.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.load()
print("open", flush=True)
sys.stdin.read()
journal.close()
print("closed", flush=True)
signal.pause()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder open."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def test_second_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """The folder of another process is refused, by whatever path, and its process is named. It is
    free once it is closed, though its process lives on."""
    alias = tmp_path / "alias"
    alias.symlink_to(tmp_path)
    for folder in (tmp_path, alias):
        with pytest.raises(StoreError) as caught:
            Journal(folder)
        assert f"process {holder.pid};" in str(caught.value)
        assert str(folder) in str(caught.value)
    assert holder.stdin and holder.stdout
    holder.stdin.close()
    assert holder.stdout.readline() == "closed\n"
    assert holder.poll() is None
    assert read(tmp_path) == []


def test_free_after_kill(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """A folder is free once its process was killed."""
    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    assert read(tmp_path) == []


def test_second_opener_in_process(tmp_path: Path) -> None:
    """A folder has one opener within a process, too."""
    with opened(tmp_path) as journal:
        journal.append(line(A, b"{}"))
        with pytest.raises(StoreError, match=rf"process {os.getpid()};"):
            Journal(tmp_path)
        journal.append(line(B, b"{}"))
    assert read(tmp_path) == [line(A, b"{}"), line(B, b"{}")]


def test_where_it_listens(tmp_path: Path) -> None:
    """The lock says where its process listens, also in a folder that was taken away and is made
    anew."""
    folder = tmp_path / "cache"
    with opened(folder) as journal:
        journal.append(line(A, b"{}"))
        journal.settle()
        journal.journal.announce("http://127.0.0.1:1")
        before = owner_of(folder)
        assert before == Owner(str(os.getpid()), "http://127.0.0.1:1")
        folder.rename(tmp_path / "elsewhere")
        until(lambda: owner_of(folder) == before)
    with open(tmp_path / "other", "wb") as other:
        journal.journal.announce("http://127.0.0.1:2")  # too late
        assert other.seek(0, 2) == 0


# What others do to the file


def rotate(path: Path) -> None:
    path.rename(path.with_name("cache.jsonl.1"))


def rotate_and_create(path: Path) -> None:
    rotate(path)
    path.touch(0o644)


def rotate_and_remove(path: Path) -> None:
    rotate(path)
    path.with_name("cache.jsonl.1").unlink()


def take_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize(
    "do", [rotate, rotate_and_create, rotate_and_remove, Path.unlink, take_folder]
)
def test_a_file_that_is_taken_away(
    do: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that somebody renames or removes gets its name back, or is written anew."""
    for is_idle in (True, False):
        caplog.clear()
        folder = tmp_path / f"{is_idle}" / "cache"
        path = folder / "cache.jsonl"
        wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
        with opened(folder) as journal:
            told: list[bool] = []
            journal.journal.before_restoring(
                lambda path=path, told=told: told.append(path.exists() and path.stat().st_size > 0)
            )
            journal.append(wanted[0])
            journal.settle()
            do(path)
            if not is_idle:
                journal.append(wanted[1])
            until(lambda path=path: path.exists() and path.stat().st_size)
            until(lambda: caplog.records)
            journal.append(line(C, b'{"x":3}'))
            journal.settle()
            assert pool(journal, A) == [1], is_idle
            assert told[0] is False, "what belongs to the file is to be there before it"
        wanted = [wanted[0], *([] if is_idle else [wanted[1]]), line(C, b'{"x":3}')]
        assert read(folder) == wanted, is_idle
        assert path.stat().st_mode & 0o777 == 0o600
        (record,) = caplog.records
        assert str(path) in record.getMessage()
        said = "was renamed" if do in (rotate, rotate_and_create) else "was removed"
        assert said in record.getMessage() or do is take_folder


def test_another_file_in_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that was put in the place of the journal is renamed, and the journal is back."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        journal.append(line(A, b'{"x":1}'))
        journal.settle()
        backup = tmp_path / "backup"
        backup.write_bytes(b"backup\n")
        backup.rename(path)
        until(lambda: path.exists() and path.read_bytes() != b"backup\n")
        journal.append(line(B, b'{"x":2}'))
    assert read(tmp_path) == [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    assert (tmp_path / "cache.jsonl.other").read_bytes() == b"backup\n"
    assert "cache.jsonl.other" in caplog.text
