"""The index of a large journal is kept, and is used only where it is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.store import DiskStore, Loaded
from sglang_cached_addon.store.journal import loading
from tests.store.test_disk import body, fill, opened, records_of, settle, there


@pytest.fixture(autouse=True)
def keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small journal is large enough."""
    monkeypatch.setattr("sglang_cached_addon.store.journal.kept.INDEX_BYTES", 1000)


def test_a_large_journal_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of which the index was kept are not read at open; a kept index that is damaged, missing
    or older than the file is made up for."""
    kept = tmp_path / "cache.index"
    scan, read = loading.scan, list[bytes]()
    monkeypatch.setattr(loading, "scan", lambda line: read.append(line) or scan(line))

    def opening(*, reads: int, lines: int) -> None:
        read.clear()
        with opened(tmp_path) as store:
            assert there(store, 30) == list(range(lines))
            assert store.loaded == Loaded(lines, lines)
        assert len(read) == reads
        assert kept.exists()

    with opened(tmp_path) as store:
        fill(store, *range(20))
    opening(reads=0, lines=20)
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + b"?")
    opening(reads=20, lines=20)
    kept.unlink()
    opening(reads=20, lines=20)
    assert kept.read_bytes() == data
    with opened(tmp_path) as store:
        fill(store, 20, 21)
    kept.write_bytes(data)  # as after a kill: it is of the first 20 lines
    opening(reads=2, lines=22)
    with opened(tmp_path) as store:
        store.clear().result(60)
        assert not kept.exists()
        fill(store, *range(25))
        settle(store)
        store.journal.compact().result(60)
    opening(reads=0, lines=25)


def test_damage_behind_a_kept_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged line is no answer, though the file was not read at open."""
    with opened(tmp_path) as store:
        fill(store, *range(20))
    path = tmp_path / "cache.jsonl"
    path.write_bytes(path.read_bytes().replace(body(7), body(8)))
    with opened(tmp_path) as store:
        assert len(store.index) == 20
        assert there(store, 20) == [n for n in range(20) if n != 7]
        assert len(store.index) == 19
        at = path.read_bytes().index(records_of(path)[7])
        assert f"{path}: the line at byte {at} is not used: wrong checksum" in caplog.text
        store.journal.compact().result(60)
    assert (tmp_path / "cache.jsonl.broken").read_bytes().count(b"\n") == 1


def test_the_index_of_another_file(tmp_path: Path) -> None:
    """A kept index is not used for a file that is not the one it is of."""
    for folder, first in ((tmp_path / "a", 0), (tmp_path / "b", 20)):
        with opened(folder) as store:
            fill(store, *range(first, first + 20))
    (tmp_path / "a/cache.index").replace(tmp_path / "b/cache.index")
    store = DiskStore(tmp_path / "b")
    assert there(store, 40) == list(range(20, 40))
    store.close()
