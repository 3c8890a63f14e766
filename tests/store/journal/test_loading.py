"""A journal is opened: what is of no use is set aside, and the rest is found."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sglang_cached_addon.store import Loaded
from sglang_cached_addon.store.journal import Journal
from tests.conftest import until
from tests.store.journal.opened import (
    BROKEN,
    A,
    B,
    C,
    changed,
    line,
    names,
    opened,
    pool,
    read,
    write,
)


def test_cut_anywhere(tmp_path: Path) -> None:
    """Cut at any byte, the file opens with its whole lines, and is added to behind them."""
    lines = [line(A, '{"x":"é"}'.encode()), line(B, b'{"x":2}', b"{}")]
    data = write(tmp_path / "whole", *lines)
    added = line(C, b'{"x":"new"}')
    ends = [end for end, byte in enumerate(data) if byte == 10]
    near = {end + by for end in ends for by in (-1, 0, 1)}
    for end in sorted({*range(0, len(data), 11), *near}):
        folder = tmp_path / str(end)
        folder.mkdir()
        path = folder / "cache.jsonl"
        path.write_bytes(data[:end])
        start = data.rfind(b"\n", 0, end) + 1
        kept = lines[: data.count(b"\n", 0, end)]
        with opened(folder) as journal:
            assert journal.lines == kept, end
            assert (journal.loaded.skipped, journal.loaded.torn) == (0, end - start), end
            assert path.read_bytes() == data[:start], end
            journal.append(added)
        aside = folder / "cache.jsonl.torn"
        if end > start:
            assert aside.read_bytes() == data[start:end] + b"\n", end
        else:
            assert not aside.exists(), end
        with opened(folder) as journal:
            assert journal.lines == [*kept, added], end
            assert (journal.loaded.skipped, journal.loaded.torn) == (0, 0), end


def test_long_torn_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn last line of any length is moved aside, each time there is one."""
    wanted = line(A, b'{"x":1}')
    data = write(tmp_path, wanted)
    torn = b'{"v":4,"key":"' + b"x" * 300_000
    path = tmp_path / "cache.jsonl"
    path.write_bytes(data + torn)
    with opened(tmp_path) as journal:
        assert journal.lines == [wanted]
        assert journal.loaded.torn == len(torn)
        assert path.read_bytes() == data
        journal.append(line(B, b'{"x":2}'))
        journal.settle()
        assert (pool(journal, A), pool(journal, B), journal.journal.resets) == ([1], [2], 0)
    assert (tmp_path / "cache.jsonl.torn").read_bytes() == torn + b"\n"
    assert str(path) in caplog.text
    path.write_bytes(data + b"again")
    assert read(tmp_path) == [wanted]
    assert (tmp_path / "cache.jsonl.torn").read_bytes() == torn + b"\nagain\n"


def test_broken_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken line is skipped, logged and left where it is, and costs no other line."""
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    first, second = write(tmp_path, *wanted).splitlines()
    path = tmp_path / "cache.jsonl"
    for name, bad in BROKEN.items():
        caplog.clear()
        path.write_bytes(b"".join(one + b"\n" for one in (bad, first, bad, second, bad)))
        with opened(tmp_path) as journal:
            assert journal.lines == wanted, name
            assert journal.loaded == Loaded(keys=2, samples=2, skipped=3), name
        for number in (1, 3, 5):
            assert f"{path}:{number}:" in caplog.text, name
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 3, name
        assert path.read_bytes().count(bad + b"\n") >= 3, name


def test_lines_without_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lines of older versions are of no use, are named once in the log, and are kept aside."""
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}')]
    first, second = write(tmp_path, *wanted).splitlines(keepends=True)
    old = changed(v=1) + b"\n"
    path = tmp_path / "cache.jsonl"
    path.write_bytes(old * 1000 + first + old + second + old)
    with opened(tmp_path) as journal:
        assert journal.loaded == Loaded(keys=2, samples=2, skipped=1002, old=1002)
        until(lambda: path.stat().st_size == len(first + second))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert "1002" in record.getMessage()
    assert path.read_bytes() == first + second
    assert (tmp_path / "cache.jsonl.v1").read_bytes() == old * 1002
    former = changed(v=3) + b"\n"
    path.write_bytes(former + path.read_bytes())
    with opened(tmp_path):
        until(lambda: path.stat().st_size == len(first + second))
    assert read(tmp_path) == wanted
    assert (tmp_path / "cache.jsonl.v3").read_bytes() == former


def test_flipped_anywhere(tmp_path: Path) -> None:
    """A flipped bit costs the line that it is in, and nothing else."""
    wanted = [line(A, b'{"x":1}'), line(B, b'{"x":2}'), line(C, b'{"x":3}')]
    data = write(tmp_path, *wanted)
    path = tmp_path / "cache.jsonl"
    ends = [place for place, byte in enumerate(data) if byte == 10]
    for place in sorted({*range(0, len(data), 4), *ends}):
        mask = (0x01, 0x04, 0x20, 0x80, 0xFF)[place % 5]
        flipped = bytearray(data)
        flipped[place] ^= mask
        path.write_bytes(flipped)
        touched = sum(end < place for end in ends)
        # Without its newline, a line runs into the next one.
        lost = {touched, touched + 1} if place in ends else {touched}
        with opened(tmp_path) as journal:
            assert journal.lines == [o for n, o in enumerate(wanted) if n not in lost], place
            # The bit may make a line end of a letter, and the last line may be torn.
            count = 2 if flipped.count(10) > data.count(10) else 1
            found = journal.loaded.skipped + bool(journal.loaded.torn)
            assert found == count, place


# A file of the original

ORIGINAL = [
    b'{"key": "abc", "request": {"text": "hi"}, "responses": [{"text": "ho"}]}',
    b'{"hash": "0f", "n": 2, "response": {"choices": []}}',
]


def test_a_file_of_the_original(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file of the original sglang-cached is set aside, torn or whole, with one line in the
    log."""
    path, aside = tmp_path / "cache.jsonl", tmp_path / "cache.jsonl.original"
    for count, torn in enumerate((b"", b"\n", b'\n{"key": "half'), 1):
        data = b"\n".join(ORIGINAL * 500) + torn
        path.write_bytes(data)
        caplog.clear()
        with opened(tmp_path) as journal:
            assert journal.loaded == Loaded(), torn
            journal.append(line(A, b'{"x":1}'))
            journal.settle()
            assert pool(journal, A) == [1], torn
        (record,) = [r for r in caplog.records if "could read" not in r.getMessage()]
        assert "cache.jsonl.original" in record.getMessage()
        assert read(tmp_path) == [line(A, b'{"x":1}')], torn
        found = sorted(tmp_path.glob("cache.jsonl.original*"), key=lambda one: len(one.name))
        assert len(found) == count, "what was moved before is gone"
        assert found[0] == aside
        assert data in [one.read_bytes() for one in found]


def test_lines_of_another_program_among_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that has lines of ours stays, and a flood of others is not logged line by line."""
    own = write(tmp_path, line(A, b'{"x":1}'))
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b"".join(one + b"\n" for one in ORIGINAL * 500) + own)
    with opened(tmp_path) as journal:
        assert journal.loaded == Loaded(1, 1, skipped=1000)
        assert pool(journal, A) == [1]
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
    assert len(caplog.records) < 30
    assert "1000 lines skipped in all" in caplog.text


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress of the reading is told, and ends with 1."""
    monkeypatch.setattr("sglang_cached_addon.store.journal.loading.PROGRESS_LINES", 5)
    write(tmp_path, *(line(A, b"{}") for _ in range(20)))
    told: list[float] = []
    journal = Journal(tmp_path)
    journal.load(told.append)
    journal.close()
    assert len(told) == 5
    assert told == sorted(told)
    assert 0.0 < told[0] < told[-1] == 1.0
