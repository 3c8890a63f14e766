"""The file of sketches."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sglang_cached_addon.store.journal.sketch_file import (
    NEWEST,
    VERSION,
    Mark,
    Overtaken,
    SketchFile,
    words,
)


def test_find(tmp_path: Path) -> None:
    """What has most in common comes first, and rare numbers say more than common ones."""
    path = tmp_path / "x"
    with SketchFile(path, is_new=True) as file:
        assert file.mark == Mark()
        many = [(at, words({1, 2, 3})) for at in range(2 * NEWEST)]
        file.add([*many, (5000, words({1, 7})), (6000, words({7, 8}))], Mark(), Mark(7000, 5))
    with SketchFile(path, is_new=False) as file:
        assert file.mark == Mark(7000, 5)
        assert set(file.find({7, 8, 1, 2}, 2)) == {5000, 6000}
        assert file.find({8}, 9) == [6000]
        assert file.find({9}, 9) == file.find(set(), 9) == []
        # Of those that are equal, the ones that were stored last.
        assert sorted(file.find({3}, NEWEST)) == list(range(NEWEST, 2 * NEWEST))
    assert path.stat().st_mode & 0o077 == 0


def test_several_writers(tmp_path: Path) -> None:
    """Who goes on where another one has gone on already learns that, and changes nothing; who
    begins anew replaces all."""
    with SketchFile(tmp_path / "x", is_new=True) as one, SketchFile(tmp_path / "x",
                                                                  is_new=True) as two:  # fmt: skip
        one.add([(1, words({1}))], Mark(), Mark(10, 1))
        one.add([(11, words({1}))], Mark(10, 1), Mark(20, 2))
        for mark in (Mark(10, 1), Mark(20, 3)):
            with pytest.raises(Overtaken):
                two.add([(11, words({1}))], mark, Mark(30, 3))
        assert sorted(two.find({1}, 9)) == [1, 11]
        two.add([(5, words({1}))], Mark(), Mark(6, 6))
        assert (one.find({1}, 9), one.mark) == ([5], Mark(6, 6))


def test_another_version(tmp_path: Path) -> None:
    """A file of another version is made anew."""
    path = tmp_path / "x"
    with SketchFile(path, is_new=True) as file:
        file.add([(1, words({1}))], Mark(), Mark(10, 1))
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with SketchFile(path, is_new=True) as file:
        assert (file.mark, file.find({1}, 9)) == (Mark(), [])


def test_no_file(tmp_path: Path) -> None:
    """None is made by who only wants to find something."""
    with pytest.raises(sqlite3.OperationalError), SketchFile(tmp_path / "x", is_new=False) as file:
        file.find({1}, 9)
    assert not any(tmp_path.iterdir())
