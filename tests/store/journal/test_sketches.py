"""Finding calls that are alike in a journal that grows, is written anew, cut and cleared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sglang_cached_addon.store.journal.sketches import Sketches
from tests.store.journal.opened import A, B, C, Opened, clear_some, line, of_a, opened
from tests.tables import each

SECONDS = 60.0
"""Long: what is waited for happens at once."""

NAME = "cache.sketches"


@contextmanager
def looking(folder: Path) -> Iterator[Sketches]:
    with closing(Sketches(folder / "cache.jsonl")) as found:
        yield found


def found(sketches: Sketches, api: str = "chat") -> list[bytes]:
    """The keys of calls like one; all of the journal was looked through."""
    alike = sketches.alike(api, b'{"q":"one two three","t":1}', SECONDS)
    assert alike.share == 1.0
    return [key for key, _, _ in alike.calls]


def fill(journal: Opened) -> None:
    journal.append(line(A, b"{}"), b'{"q":"one two four","t":1}')
    journal.append(line(B, b"{}"), b'{"q":"one two three","t":2}')
    journal.append(line(C, b"{}", dialect="generate"), b'{"q":"one two three","t":1}')
    journal.append(line(A, b'{"call":{"q":1}}'))
    journal.settle()


def test_alike(tmp_path: Path) -> None:
    """Calls of the same API are found, also those that have come since somebody asked first."""
    with opened(tmp_path) as journal, looking(tmp_path) as sketches:
        assert found(sketches) == []
        fill(journal)
        assert sorted(found(sketches)) == [A, B]
        assert found(sketches, "generate") == [C]
        assert found(sketches, "other") == []
        journal.append(line(C, b"{}"), b'{"q":"one two three","t":1,"more":0}')
        journal.settle()
        assert found(sketches)[0] == C
        (call,) = [call for call in sketches.alike("chat", b"{}", SECONDS).calls if call[0] == A]
        assert call == (A, "chat", b'{"q":"one two four","t":1}')
    assert (tmp_path / NAME).stat().st_mode & 0o077 == 0


def test_kept(tmp_path: Path) -> None:
    """What was looked through is not looked through again by who comes later."""
    with opened(tmp_path) as journal:
        fill(journal)
    with looking(tmp_path) as sketches:
        assert sorted(found(sketches)) == [A, B]
    before = (tmp_path / NAME).stat()
    with looking(tmp_path) as sketches, looking(tmp_path) as others:
        assert sorted(found(sketches)) == sorted(found(others)) == [A, B]
    after = (tmp_path / NAME).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@each("is_open", [True, False])
def test_written_anew(tmp_path: Path, is_open: bool) -> None:
    """What is removed from the journal is gone from its sketches, whether or not anybody looks,
    and what is left is found where it is now."""
    with opened(tmp_path) as journal:
        fill(journal)
        with looking(tmp_path) as sketches:
            assert sorted(found(sketches)) == [A, B]
            if is_open:
                clear_some(journal.journal, of_a).result(SECONDS)
                assert found(sketches) == [B]
        if not is_open:
            clear_some(journal.journal, of_a).result(SECONDS)
            assert not [path for path in tmp_path.iterdir() if path.name.startswith(NAME)]
        with looking(tmp_path) as sketches:
            assert found(sketches) == [B]
            journal.journal.clear().result(SECONDS)
            assert found(sketches) == []
            fill(journal)
            assert sorted(found(sketches)) == [A, B]


def test_another_journal(tmp_path: Path) -> None:
    """Sketches that are of another file are made anew, whichever is longer."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with opened(tmp_path / "a") as journal:
        fill(journal)
    with opened(tmp_path / "b") as journal:
        journal.append(line(B, b'{"x":1}'), b'{"z":"one two three"}')
    for name, other, keys in (("a", "b", [A, B]), ("b", "a", [B])):
        with looking(tmp_path / name) as sketches:
            assert sorted(found(sketches)) == keys
        (tmp_path / name / NAME).replace(tmp_path / other / NAME)
        with looking(tmp_path / other) as sketches:
            assert sorted(found(sketches)) == ([B] if keys == [A, B] else [A, B])


DAMAGES = {
    "no database": lambda path: path.write_bytes(b"no database at all" * 999),
    "cut": lambda path: os.truncate(path, 5000),
    "in the middle": lambda path: path.write_bytes(path.read_bytes()[:8000] + bytes(4096)),
}


@each("damage", DAMAGES)
def test_damaged(tmp_path: Path, damage: str) -> None:
    """A damaged file is of no consequence, and is replaced."""
    with opened(tmp_path) as journal:
        fill(journal)
    with looking(tmp_path) as sketches:
        found(sketches)
    DAMAGES[damage](tmp_path / NAME)
    with looking(tmp_path) as sketches:
        assert sorted(found(sketches)) == [A, B]
    with looking(tmp_path) as sketches:
        assert sorted(found(sketches)) == [A, B]


def test_no_file_possible(tmp_path: Path) -> None:
    """Where there can be no file of sketches, the journal is read."""
    with opened(tmp_path) as journal:
        fill(journal)
    (tmp_path / NAME).mkdir()
    with looking(tmp_path) as sketches:
        assert sorted(found(sketches)) == [A, B]


def test_no_journal(tmp_path: Path) -> None:
    """Nothing is found where nothing is."""
    with looking(tmp_path / "nowhere") as sketches:
        assert found(sketches) == []


def test_not_yet(tmp_path: Path) -> None:
    """Who does not wait is told how much was looked through."""
    with opened(tmp_path) as journal:
        fill(journal)
    with looking(tmp_path) as sketches:
        assert sketches.alike("chat", b"{}", -1.0).share < 1.0
        assert sorted(found(sketches)) == [A, B]
