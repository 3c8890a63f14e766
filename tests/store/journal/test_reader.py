"""Reading a journal beside its writer."""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.store.journal.extents import FILE, FILES, Place
from sglang_cached_addon.store.journal.reader import FileReader, FileReaders, calls_of
from tests.store.journal.opened import (
    BROKEN,
    A,
    B,
    C,
    changed,
    clear_some,
    line,
    of_a,
    opened,
    write,
)


def test_calls(tmp_path: Path) -> None:
    """The calls of whole lines are found, as many as are wanted and as time allows."""
    with opened(tmp_path) as journal:
        journal.append(line(A, b"{}"), '{"q":"é","z":1,"a":2.0}'.encode())
        journal.append(line(A, b'{"call":1}'))
        journal.append(line(B, b"{}", dialect="generate"), b'{"q":2}')
    found = [(A, "chat", '{"q":"é","z":1,"a":2.0}'.encode()), (B, "generate", b'{"q":2}')]
    path = tmp_path / "cache.jsonl"
    assert list(calls_of(path, 100, 10.0)) == found
    first, second, third = map(len, path.read_bytes().splitlines(keepends=True))
    for newest, count in (
        (0, 0), (third - 1, 0), (third, 1), (second + third, 1), (first + second + third - 1, 1),
        (first + second + third, 2), (10**9, 2),
    ):  # fmt: skip
        assert list(calls_of(path, 100, 10.0, newest)) == found[2 - count :], newest
    odd = [changed(call=value) for value in ("x", 1, [])] + [changed(v=1, call={"q": 0})]
    deep = b'{"v":4,"key":"%s","dialect":"x","call":%s}' % (
        C.hex().encode(),
        b'{"a":' * 500 + b"1" + b"}" * 500,
    )
    bad = b"".join(one + b"\n" for one in (*BROKEN.values(), *odd, deep))
    path.write_bytes(bad + path.read_bytes() + bad)
    for limit, seconds, count in ((100, 10, 2), (0, 10, 0), (1, 10, 1), (2, 10, 2), (100, -1, 0)):
        assert list(calls_of(path, limit, seconds)) == found[:count], (limit, seconds)


def test_calls_do_not_disturb(tmp_path: Path) -> None:
    """Calls are read while the file is added to, replaced, cut and removed."""
    write(tmp_path, *(line(key, b"{}") for key in (A, B, C) * 500))
    with opened(tmp_path) as journal:
        reading = calls_of(journal.journal.path, 10_000, 10)
        assert next(reading)[0] == A
        journal.append(line(A, b'{"x":1}'))
        clear_some(journal.journal, of_a).result(60)
        assert len(list(reading)) == 1499
        cut = calls_of(journal.journal.path, 10_000, 10)
        assert next(cut)[0] == B
        journal.journal.clear().result(60)
        list(cut)
        assert list(calls_of(journal.journal.path, 9, 9)) == []
        (tmp_path / "cache.jsonl").unlink()
        assert list(calls_of(journal.journal.path, 9, 9)) == []


def test_reader(tmp_path: Path) -> None:
    """A file is read that has no name any more, and offsets tell one file from another."""
    path = tmp_path / "one"
    path.write_bytes(b"0123456789")
    reader = FileReader(path)
    path.unlink()
    assert reader.read(2, 3, waits=True) == b"234"
    assert reader.read(2, 3, waits=False) in (b"234", None)
    with reader.open() as file:
        assert file.read() == b"0123456789"
    path.write_bytes(b"abc")
    readers, other = FileReaders(reader), FileReader(path)
    assert readers.add(other) == readers.newest == 1
    assert [readers.of(Place(n * FILE + 7, 1)) for n in range(3)] == [reader, other, None]
    readers.forget_former()
    readers.renumber(FILES - 1)
    readers.renumber()
    assert [readers.of(Place(n * FILE, 1)) for n in (0, 1, FILES - 1)] == [other, None, None]
