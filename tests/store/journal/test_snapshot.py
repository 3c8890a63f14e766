"""A journal as it is, beside its owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.journal.lines import encode
from sglang_cached_addon.store.journal.snapshot import Snapshot
from tests.store.journal.opened import A, B, opened


def some(*numbers: int, at: float = 1.0) -> list[Sample]:
    return [Sample(b'{"x":%d}' % number, at, 0.5, number) for number in numbers]


def test_pools(tmp_path: Path) -> None:
    """Each pool is there with its call and with what was not replaced, also when the file is
    compacted meanwhile; what comes later is not seen. What cannot be read is left out, and
    counted."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        journal.journal.append(Addition(A, "chat", b'{"q":1}', some(1, 2)))
        journal.journal.append(Addition(B, "chat", b'{"q":2}', some(5)))
        journal.journal.append(Addition(A, "chat", b"", some(3, 4, at=2.0)), 1)
        journal.settle()
        with open(path, "ab") as file:
            file.write(b'broken\n{"v":1}\n' + encode(Addition(B, "chat", b"", some(6)))[:-1])
        snapshot = Snapshot(path)
        journal.journal.compact().result(60)
        journal.journal.append(Addition(B, "chat", b"", some(7)), 1)
        journal.settle()
    b, a = snapshot.pools()
    assert b == Addition(B, "chat", b'{"q":2}', some(5))
    assert a == Addition(A, "chat", b'{"q":1}', [*some(1), *some(3, 4, at=2.0)])
    assert snapshot.broken == 2


def test_order(tmp_path: Path) -> None:
    """The pool that was not added to for the longest time comes first; those that are not wanted
    are not read."""
    path = tmp_path / "cache.jsonl"
    lines = [
        encode(Addition(A, "chat", b'{"q":1}', some(1, 2))),
        encode(Addition(B, "chat", b'{"q":2}', some(5))),
        encode(Addition(A, "chat", b"", some(3, 4, at=2.0)), 1),
    ]
    path.write_bytes(b"".join(lines))
    assert [pool.key for pool in Snapshot(path).pools()] == [B, A]
    assert [pool.key for pool in Snapshot(path).pools(lambda key: key == A)] == [A]


def test_what_was_cut_meanwhile(tmp_path: Path) -> None:
    """What somebody has cut off the file is not there, and is counted."""
    path = tmp_path / "cache.jsonl"
    path.write_bytes(encode(Addition(A, "chat", b"{}", some(1))))
    snapshot = Snapshot(path)
    path.write_bytes(b"")
    assert (list(snapshot.pools()), snapshot.broken) == ([], 1)


def test_no_file(tmp_path: Path) -> None:
    """A file that cannot be read is named."""
    with pytest.raises(StoreError, match=r"cannot read \S+/cache.jsonl: No such file"):
        Snapshot(tmp_path / "cache.jsonl")
