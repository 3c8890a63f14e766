"""Reading a journal from its end to its beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.journal import backwards
from sglang_cached_addon.store.journal.backwards import Hits, Mark, lines_before
from sglang_cached_addon.store.journal.extents import PENDING
from sglang_cached_addon.store.journal.lines import encode


def line(number: int, size: int = 0) -> bytes:
    sample = Sample(b'{"text":"%d%b"}' % (number, b"x" * size), 1.8e9 + number, 0.0, 1)
    return encode(Addition(b"%032d" % number, "chat", b"{}", [sample]))


def every(lines: bytes) -> Iterator[int]:
    for at in reversed(range(len(lines))):
        if lines[at] == 10:
            yield at


def only(text: bytes) -> Hits:
    def hits(lines: bytes) -> Iterator[int]:
        return (at for at in reversed(range(len(lines))) if lines.startswith(text, at))

    return hits


def read(
    path: Path,
    mark: Mark | None = None,
    waiting: Sequence[tuple[int, bytes]] = (),
    hits: Hits = every,
) -> list[bytes]:
    return [step.line for step in lines_before(path, mark, waiting, hits) if step.is_hit]


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    """Of many lengths, and in a file."""
    found = [line(number, 37 * number % 1000) for number in range(60)]
    (tmp_path / "file").write_bytes(b"".join(found))
    return found


def test_all_lines(tmp_path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line comes once and whole, in whatever pieces the file is read."""
    path = tmp_path / "file"
    for piece in (1, 2, 7, 100, 1000, 4096, 1 << 20):
        monkeypatch.setattr(backwards, "PIECE", piece)
        assert read(path) == lines[::-1], piece
        assert read(path, hits=only(b'"text":"1')) == [*lines[19:9:-1], lines[1]]
    path.write_bytes(b"")
    assert read(path) == []
    path.write_bytes(lines[0])
    assert read(path) == [lines[0]]
    with pytest.raises(OSError, match="No such file"):
        read(tmp_path / "none")


def test_a_torn_line(tmp_path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no newline yet is not read, however long it is."""
    path, whole = tmp_path / "file", b"".join(lines[:5])
    monkeypatch.setattr(backwards, "PIECE", 100)
    for size in range(len(lines[5])):
        path.write_bytes(whole + lines[5][:size])
        assert read(path) == lines[4::-1], size


def test_marks(tmp_path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the mark of each line on, the lines before it are read: as its text, when lines were
    added, and when the file was written anew without some of them."""
    path = tmp_path / "file"
    monkeypatch.setattr(backwards, "PIECE", 300)
    steps = [step for step in lines_before(path, None, (), every) if step.is_hit]
    marks = [Mark.read(str(Mark.of(step.offset, step.line))) for step in steps]
    for number, mark in enumerate(reversed(marks)):
        assert read(path, mark) == lines[:number][::-1]
    with open(path, "ab") as file:
        file.write(line(60))
    for number, mark in enumerate(reversed(marks)):
        assert read(path, mark) == lines[:number][::-1]
    path.write_bytes(b"".join(lines[::2]))
    for number, mark in enumerate(reversed(marks)):
        assert read(path, mark) == lines[:number:2][::-1]
    path.write_bytes(b"")
    assert read(path, marks[0]) == []
    for text in ("", "x", "1-2-3", "1-2-3-x", "1-2-3-4-5"):
        with pytest.raises(ValueError):
            Mark.read(text)


def test_lines_that_wait(tmp_path: Path, lines: list[bytes]) -> None:
    """Lines that are not in the file yet come first, and are gone on from, even when they have come
    to be in the file."""
    path, new = tmp_path / "file", [line(number) for number in range(60, 65)]
    waiting = [(PENDING + number, each) for number, each in enumerate(new)]
    assert read(path, None, waiting) == [*new[::-1], *lines[::-1]]
    mark = Mark.read(str(Mark.of(*waiting[2])))
    assert read(path, mark, waiting) == [*new[1::-1], *lines[::-1]]
    with open(path, "ab") as file:
        file.write(b"".join(new))
    assert read(path, mark, waiting) == [*new[1::-1], *lines[::-1]], "they waited when it began"
    with open(path, "ab") as file:
        file.write(line(-100))  # it brings its own time
    assert read(path, mark) == [*new[1::-1], *lines[::-1]]
    first = Mark.read(str(Mark.of(0, lines[0])))
    assert read(path, first, waiting) == []


def test_how_far(tmp_path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hits, it is told now and then how far it is, down to the beginning."""
    monkeypatch.setattr(backwards, "PIECE", 2000)
    steps = list(lines_before(tmp_path / "file", None, (), lambda lines: iter(())))
    assert len(steps) > 5 and not any(step.is_hit for step in steps)
    offsets = [step.offset for step in steps]
    assert offsets == sorted(offsets, reverse=True) and offsets[-1] == 0
    assert all(step.line in lines for step in steps)
