"""A folder that another process owns: what that stores is found, what it removes is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.store import DiskStore, Loaded, StoreError
from sglang_cached_addon.store.journal import follower
from tests.conftest import until
from tests.store.journal.opened import names
from tests.store.test_disk import body, fill, key_of, opened, pool, settle


@pytest.fixture(autouse=True)
def follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "LOOK_SECONDS", 0.01)


@contextmanager
def following(folder: Path) -> Iterator[DiskStore]:
    store = DiskStore(folder, is_follower=True)
    try:
        yield store
    finally:
        store.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def has(store: DiskStore, *numbers: int) -> bool:
    """Whether just these are there, whole."""
    assert store.bring({}, claims=True) is None
    found = {n: [s.answer for s in pool(store, key_of(n))] for n in range(30)}
    return {n: answers for n, answers in found.items() if answers} == {
        n: [body(n)] for n in numbers
    }


def test_a_large_journal_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of which the owner has kept the index are not read, those behind them are; one that is
    not of the file that is there is of no use."""
    monkeypatch.setattr("sglang_cached_addon.store.journal.kept.INDEX_BYTES", 1)
    scan, read = follower.scan, list[bytes]()
    monkeypatch.setattr(follower, "scan", lambda line: read.append(line) or scan(line))
    with opened(tmp_path) as owner:
        fill(owner, 1, 2)
        settle(owner)
        owner.journal.compact().result(60)  # the file has another number from now on
        fill(owner, 3)
    with opened(tmp_path) as owner:
        with following(tmp_path) as store:
            assert store.loaded == Loaded(3, 3)
            assert has(store, 1, 2, 3)
            assert len(read) == 0
            fill(owner, 4)
            until(lambda: has(store, 1, 2, 3, 4))
            assert len(read) == 1
        owner.remove(key_of(2))
        owner.journal.compact().result(60)
        read.clear()
        with following(tmp_path) as store:
            assert has(store, 1, 3, 4)
            assert len(read) == 3


def test_beside_the_owner(tmp_path: Path) -> None:
    """A follower has what the owner has, and what the owner adds."""
    with opened(tmp_path) as owner:
        fill(owner, 1)
        settle(owner)
        files = names(tmp_path)
        with following(tmp_path) as store:
            assert store.loaded == Loaded(1, 1)
            assert has(store, 1)
            fill(owner, 2, 3)
            until(lambda: has(store, 1, 2, 3))
            assert store.find(b"%016d" % 3) == key_of(3)
            owner.append(Addition(key_of(1), "chat", b"{}", [owner.get(key_of(1))[0]]))
            until(lambda: store.bring({}, claims=True) or len(pool(store, key_of(1))) == 2)
        assert names(tmp_path) == files


def test_removed_by_the_owner(tmp_path: Path) -> None:
    """What the owner removes, compacts or clears, the follower has no more."""
    with opened(tmp_path) as owner:
        fill(owner, *range(20))
        settle(owner)
        with following(tmp_path) as store:
            assert has(store, *range(20))
            generation = store.generation
            owner.journal.remove(key_of(0))
            settle(owner)
            until(lambda: has(store, *range(1, 20)))
            owner.journal.compact().result(60)
            fill(owner, 20)
            until(lambda: has(store, *range(1, 21)))
            owner.clear().result(60)
            until(lambda: has(store))
            assert store.generation > generation
            fill(owner, 7)
            until(lambda: has(store, 7))


def test_half_a_line(tmp_path: Path) -> None:
    """A line that is being written is read once it is whole."""
    with opened(tmp_path) as owner:
        fill(owner, 1, 2)
    path = tmp_path / "cache.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:50])
    with following(tmp_path) as store:
        assert has(store, 1)
        with path.open("ab") as file:
            file.write(second[50:])
        until(lambda: has(store, 1, 2))


def test_nothing_is_written(tmp_path: Path) -> None:
    """A follower writes nothing, and refuses to clear."""
    with opened(tmp_path) as owner:
        fill(owner, 1)
    before = contents(tmp_path)
    (tmp_path / "state.json").write_bytes(b"broken")
    with following(tmp_path) as store:
        with pytest.raises(StoreError, match="--readonly"):
            store.clear().result(1)
        assert store.state.load() == {}
        store.state.save({"a": 1})
    assert (tmp_path / "state.json").read_bytes() == b"broken"
    (tmp_path / "state.json").unlink()
    assert contents(tmp_path) == before


def test_nothing_there(tmp_path: Path) -> None:
    """A folder without a journal is refused, and not made."""
    with pytest.raises(StoreError, match=r"cannot read .*cache\.jsonl.*--readonly"):
        DiskStore(tmp_path / "none", is_follower=True)
    assert not (tmp_path / "none").exists()
