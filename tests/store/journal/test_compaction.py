"""The journal is written anew: for a clear of some keys, and to be smaller."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglang_cached_addon.core.keys import FORMAT_VERSION
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.journal.reader import calls_of
from tests.store.journal.opened import (
    BROKEN,
    A,
    B,
    C,
    Held,
    at,
    break_rename,
    break_sync,
    changed,
    clear_some,
    fail,
    line,
    names,
    numbers,
    of_a,
    opened,
    pool,
    read,
    write,
)


def test_clear_of_a_part(tmp_path: Path) -> None:
    """A clear of some keys leaves the lines of others as they were, and lines are added behind."""
    lines = [line(key, b'{"x":%d}' % n) for n in range(20) for key in (A, B, C)]
    before = write(tmp_path, *lines).splitlines(keepends=True)
    path = tmp_path / "cache.jsonl"
    path.chmod(0o600)
    with opened(tmp_path) as journal:
        clear_some(journal.journal, of_a).result(60)
        kept = [one for one in before if A.hex().encode() not in one]
        assert path.read_bytes().splitlines(keepends=True) == kept
        journal.append(line(A, b'{"x":"after"}'))
        journal.settle()
        assert len(path.read_bytes().splitlines()) == len(kept) + 1
    wanted = [*(one for one in lines if one[0] != A), line(A, b'{"x":"after"}')]
    assert read(tmp_path) == wanted
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_clear_of_a_part_destroys_nothing_that_it_cannot_read(tmp_path: Path) -> None:
    """Lines that cannot be read go to a file of their own; those of a later version stay."""
    good = write(tmp_path, line(A, b'{"x":1}'), line(B, b'{"x":2}')).splitlines()
    newer = changed(v=FORMAT_VERSION + 1, key=A.hex())
    unknown = list(BROKEN.values())
    unknown = [bad for bad in unknown if bad != changed(v=FORMAT_VERSION + 1)]
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b"".join(one + b"\n" for one in (*unknown, *good, newer, *unknown)))
    with opened(tmp_path) as journal:
        clear_some(journal.journal, lambda key: True).result(60)
    assert path.read_bytes() == newer + b"\n"
    aside = (tmp_path / "cache.jsonl.broken").read_bytes()
    assert aside == b"".join(one + b"\n" for one in (*unknown, *unknown))


def test_pending_lines_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that wait around clears are kept or removed by the order in which all of it came."""
    write(tmp_path, line(A, b'{"x":"file"}'), line(B, b'{"x":"file"}'))
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        for key in (A, B, C):
            journal.append(line(key, b'{"x":"before"}'))
        first = clear_some(journal.journal, of_a)
        for key in (A, B, C):
            journal.append(line(key, b'{"x":"between"}'))
        second = clear_some(journal.journal, lambda key: key == B)
        for key in (A, B, C):
            journal.append(line(key, b'{"x":"after"}'))
        held.release()
        assert first.result(60) is second.result(10) is None
    assert read(tmp_path) == [
        line(C, b'{"x":"before"}'),
        line(A, b'{"x":"between"}'),
        line(C, b'{"x":"between"}'),
        *(line(key, b'{"x":"after"}') for key in (A, B, C)),
    ]


def test_clear_of_all_beside_one_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear of all and one of some keys, in either order, leave what came later."""
    for part_first in (True, False):
        folder = tmp_path / f"{part_first}"
        write(folder, line(A, b'{"x":"file"}'), line(B, b'{"x":"file"}'))
        with opened(folder) as journal, monkeypatch.context() as patch:
            held = Held(patch)
            clears = []
            for is_part in (part_first, not part_first):
                journal.append(line(B, b'{"x":%d}' % is_part))
                one = journal.journal
                clears.append(clear_some(one, of_a) if is_part else one.clear())
            journal.append(line(A, b'{"x":"after"}'))
            held.release()
            for done in clears:
                assert done.result(60) is None
        between = [] if part_first else [line(B, b'{"x":1}')]
        assert read(folder) == [*between, line(A, b'{"x":"after"}')], part_first


def test_deletions(tmp_path: Path) -> None:
    """A deleted pool is gone when its deletion is done, for who opens a copy of the folder as it is
    then; what comes later is there, and others are left. Compacted, the file has no text of it."""
    with opened(tmp_path / "one") as journal:
        for n in range(3):
            journal.append(line(A, b'{"x":%d}' % n))
            journal.append(line(B, b'{"x":%d}' % (n + 10)))
        journal.journal.delete(A).result(60)
        assert pool(journal, A) == [] and A not in journal.journal.index
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        journal.append(line(A, b'{"x":7}'))
        assert pool(journal, A) == [7]
        journal.journal.compact().result(60)
        assert pool(journal, A) == [7] and pool(journal, B) == [10, 11, 12]
        assert b'{"x":0}' not in journal.journal.path.read_bytes()
    assert numbers(tmp_path / "one") == [10, 11, 12, 7]
    with opened(tmp_path / "two") as journal:
        assert pool(journal, A) == [] and pool(journal, B) == [10, 11, 12]


def test_deletions_while_it_is_written_anew(tmp_path: Path) -> None:
    """However a deletion and a compaction that was under way meet, no line of the pool that was
    there before is left by one that is asked for behind it, and no line of others is lost."""
    wanted: list[int] = []
    with opened(tmp_path) as journal:
        done = []
        for n in range(200):
            journal.append(line(A, b'{"x":%d}' % n))
            journal.append(line(B, b'{"x":%d}' % (n + 1000)))
            wanted.append(n + 1000)
            if n % 20 == 9:
                done.append(journal.journal.compact())
            if n % 20 == 13:
                done.append(journal.journal.delete(A))
            time.sleep(0.001 * (n % 3))
        done += [journal.journal.delete(A), journal.journal.compact()]
        for each in done:
            assert each.result(60) is None
        assert pool(journal, A) == [] and pool(journal, B) == wanted
    assert numbers(tmp_path) == wanted


def test_clears_of_parts_under_load(tmp_path: Path) -> None:
    """While keys are cleared, no line of others is lost or comes twice."""
    wanted: list[int] = []
    with opened(tmp_path) as journal:
        clears = []
        for n in range(300):
            journal.append(line(A, b'{"x":%d}' % n))
            journal.append(line(B, b'{"x":%d}' % (n + 1000)))
            wanted.append(n + 1000)
            if n % 30 == 29:
                clears.append(clear_some(journal.journal, of_a))
            time.sleep(0.001 * (n % 3))
        for done in clears:
            assert done.result(60) is None
    assert numbers(tmp_path) == wanted


def test_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compacted file has the lines that count and those of later versions; each key keeps its
    call."""
    newer = changed(v=FORMAT_VERSION + 1)
    path = tmp_path / "cache.jsonl"
    lines = [
        at(line(A, b'{"x":1}', b'{"x":2}'), 1.0),
        at(line(B, b'{"x":3}'), 1.0),
        at(line(A, b'{"x":4}'), 2.0),
        at(line(A, b'{"x":5}'), 3.0),
    ]
    with opened(tmp_path) as journal:
        journal.append(lines[0], b'{"q":1}')
        journal.append(lines[1], b'{"q":2}')
        journal.append(lines[2], slot=0)
        journal.append(lines[3], slot=1)
        journal.settle()
    path.write_bytes(newer + b"\nbroken\n" + path.read_bytes())
    path.chmod(0o600)
    with opened(tmp_path) as journal:
        held = Held(monkeypatch)
        done = journal.journal.compact()
        journal.append(line(C, b'{"x":6}'))
        held.release()
        assert done.result(60) is None
        journal.append(line(C, b'{"x":7}'))
    data = path.read_bytes()
    assert data.startswith(newer + b"\n")
    aside = tmp_path / "cache.jsonl.broken"
    assert aside.read_bytes() == b"broken\n"
    assert path.stat().st_mode & 0o777 == aside.stat().st_mode & 0o777 == 0o600
    with opened(tmp_path) as journal:
        assert journal.lines == [*lines[1:], line(C, b'{"x":6}'), line(C, b'{"x":7}')]
        found = [(key, call) for key, _, call in calls_of(journal.journal.path, 9, 9)]
        assert found == [(B, b'{"q":2}'), (A, b'{"q":1}')]
        before = path.read_bytes()
        journal.journal.compact().result(60)
        assert path.read_bytes() == before, "what is compact was changed"


def test_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written anew stays as it was; its caller is told; lines are added to it."""
    lines = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    for break_it in (break_rename, break_sync):
        folder = tmp_path / break_it.__name__
        before = write(folder, *lines)
        path = folder / "cache.jsonl"
        with opened(folder) as journal:
            asks = {"clear": lambda j=journal: clear_some(j.journal, of_a)}
            asks["compact"] = journal.journal.compact
            for what, ask in asks.items():
                with monkeypatch.context() as patch:
                    break_it(patch)
                    with pytest.raises(StoreError) as caught:
                        ask().result(60)
                assert str(caught.value) == f"cannot {what} {path}: No space left on device"
                assert path.read_bytes() == before
                assert names(folder) == ["cache.jsonl", "cache.lock"]
            journal.append(line(C, b'{"x":3}'))
            journal.settle()
            assert path.read_bytes().startswith(before)
            clear_some(journal.journal, of_a).result(60)
        assert read(folder) == [line(B, b'{"x":2}'), line(C, b'{"x":3}')], break_it


def test_folder_that_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clear fails if its renaming may not outlive a power cut, and lines go to the new file."""
    write(tmp_path, line(A, b'{"x":1}'), line(B, b'{"x":2}'))
    with opened(tmp_path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr("sglang_cached_addon.store.journal.rewriting.sync_folder", fail)
            with pytest.raises(StoreError, match="No space left"):
                clear_some(journal.journal, of_a).result(60)
        journal.append(line(C, b'{"x":3}'))
    assert read(tmp_path) == [line(B, b'{"x":2}'), line(C, b'{"x":3}')]


def test_killed_in_the_middle_of_a_clear(tmp_path: Path) -> None:
    """A copy that was not finished is removed at open."""
    lines = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    before = write(tmp_path, *lines)
    aside = tmp_path / "cache.jsonl.new"
    aside.write_bytes(before[: len(before) // 2])
    with opened(tmp_path) as journal:
        assert journal.lines == lines
        assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
        aside.write_bytes(b"x" * 9999)
        clear_some(journal.journal, of_a).result(60)
    assert read(tmp_path) == [line(B, b'{"x":2}')]
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]


KILLED = """
import os, sys
from pathlib import Path
from sglang_cached_addon.store.journal import Journal

journal = Journal(Path(sys.argv[1]))
journal.load()
renaming = os.replace
def replace(*names):
    if sys.argv[2] == "after":
        renaming(*names)
    os._exit(7)
os.replace = replace
before = journal.mark
journal.forget(b"a" * 32)
journal.purge(before, lambda key: key == b"a" * 32).result(60)
"""


def test_killed_at_the_renaming(tmp_path: Path) -> None:
    """A process that is killed beside the renaming leaves the old file, or the new one."""
    lines = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    for when in ("before", "after"):
        folder = tmp_path / when
        write(folder, *lines)
        child = subprocess.run([sys.executable, "-c", KILLED, str(folder), when], check=False)
        assert child.returncode == 7
        assert read(folder) == (lines if when == "before" else lines[1:]), when
        assert names(folder) == ["cache.jsonl", "cache.lock"]
