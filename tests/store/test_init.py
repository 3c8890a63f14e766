"""Memory and journal together, as the proxy uses them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.store import DiskStore, Loaded, StoreError

A, B = b"a" * 32, b"b" * 32


def sample(answer: bytes) -> Sample:
    return Sample(answer, 1.5, 0.25, 3)


@contextmanager
def opened(folder: Path) -> Iterator[DiskStore]:
    store = DiskStore(folder)
    try:
        yield store
    finally:
        store.close()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cache.jsonl").read_bytes().splitlines()]


def test_reopened(tmp_path: Path) -> None:
    """A restart would lose answers, mix them up or count them wrong."""
    with opened(tmp_path) as store:
        assert store.loaded == Loaded()
        store.append(A, "chat", b'{"q":1}', [sample(b'{"x":1}'), sample(b'{"x":2}')])
        store.append(B, "generate", b'{"q":2}', [sample(b'{"x":3}')])
        store.append(A, "chat", b'{"q":1}', [sample(b'{"x":4}')])
        before = list(store.get(A)), list(store.get(B))
    with opened(tmp_path) as store:
        assert (list(store.get(A)), list(store.get(B))) == before
        assert store.loaded == Loaded(keys=2, samples=4)
        assert store.memory.by_dialect == {"chat": 3, "generate": 1}
        assert store.memory.bytes == 4 * len(b'{"x":1}')


def test_call_once(tmp_path: Path) -> None:
    """The file would grow by the whole prompt with every sample, or never say what was asked."""
    with opened(tmp_path) as store:
        store.append(A, "chat", b'{"q":1}', [sample(b"{}")])
        store.append(A, "chat", b'{"q":1}', [sample(b"{}")])
        store.append(B, "chat", b'{"q":2}', [sample(b"{}")])
    with opened(tmp_path) as store:
        store.append(A, "chat", b'{"q":1}', [sample(b"{}")])
    assert [record.get("call") for record in records(tmp_path)] == [{"q": 1}, None, {"q": 2}, None]


def test_call_again_after_clear(tmp_path: Path) -> None:
    """What was asked would be missing from a file that was cleared."""
    with opened(tmp_path) as store:
        store.append(A, "chat", b'{"q":1}', [sample(b'{"x":1}')])
        store.clear()
        store.append(A, "chat", b'{"q":1}', [sample(b'{"x":2}')])
    (record,) = records(tmp_path)
    assert (record["call"], record["answers"]) == ({"q": 1}, [{"x": 2}])


def test_clear(tmp_path: Path) -> None:
    """A cleared answer would still be served, at once or after a restart."""
    with opened(tmp_path) as store:
        store.append(A, "chat", b"{}", [sample(b"{}")])
        done = store.clear()
        assert len(store.get(A)) == 0
        assert done.result(10) is None
        assert (tmp_path / "cache.jsonl").stat().st_size == 0
    with opened(tmp_path) as store:
        assert store.loaded == Loaded()
        assert len(store.get(A)) == 0


def test_missing_folder(tmp_path: Path) -> None:
    """The first start would fail until somebody made the folder."""
    with opened(tmp_path / "one" / "two") as store:
        assert store.journal.path == tmp_path / "one" / "two" / "cache.jsonl"
    assert (tmp_path / "one" / "two" / "cache.jsonl").is_file()


def block_parent(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


def block_folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def block_lock(tmp_path: Path) -> Path:
    (tmp_path / "cache.lock").mkdir()
    return tmp_path


def block_journal(tmp_path: Path) -> Path:
    (tmp_path / "cache.jsonl").mkdir()
    return tmp_path


def block_torn(tmp_path: Path) -> Path:
    (tmp_path / "cache.jsonl").write_bytes(b'{"v":1,')
    (tmp_path / "cache.jsonl.torn").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "block",
    [
        block_parent,
        block_folder,
        block_lock,
        block_journal,
        pytest.param(
            block_torn,
        ),
    ],
)
def test_unusable_folder(block: Any, tmp_path: Path) -> None:
    """A folder that cannot be used would give a traceback in place of what to do."""
    folder = block(tmp_path)
    with pytest.raises(StoreError) as caught:
        DiskStore(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "--cache-path" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["cache.jsonl", "cache.jsonl.torn"])
def test_failed_open_frees_the_folder(name: str, tmp_path: Path) -> None:
    """After mending the folder, the same process would find it "in use"."""
    (block_journal if name == "cache.jsonl" else block_torn)(tmp_path)
    with pytest.raises((StoreError, OSError)):
        DiskStore(tmp_path)
    (tmp_path / name).rmdir()
    with opened(tmp_path) as store:
        assert store.loaded.keys == 0


def test_names_of_bodies_survive(tmp_path: Path) -> None:
    """After a restart every body would have to be read again."""
    store = DiskStore(tmp_path)
    store.append(A, "chat", b"{}", [sample(b"{}")], b"r" * 16)
    store.append(B, "chat", b"{}", [sample(b"{}")])
    store.close()
    again = DiskStore(tmp_path)
    try:
        assert again.find(b"r" * 16) == A
        assert again.find(b"s" * 16) is None
        again.clear().result(10)
        assert again.find(b"r" * 16) is None
    finally:
        again.close()
