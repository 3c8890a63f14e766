"""A journal is written anew while others use it."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.journal.reader import calls_of
from sglang_cached_addon.store.journal.verify import examine
from tests.conftest import until
from tests.store.journal.opened import A, B, C, clear_some, names, of_a


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder)
    journal.load()
    try:
        yield journal
    finally:
        journal.close()


def put(journal: Journal, key: bytes, *numbers: int, slot: int | None = None) -> None:
    samples = [Sample(b'{"x":%d}' % number, 1.5, 0.5, 3) for number in numbers]
    at = journal.index.end(key) if slot is None else slot
    content = b"" if key in journal.index else b'{"q":"%c"}' % key[0]
    assert journal.append(Addition(key, "chat", content, samples), at)


def pool(journal: Journal, key: bytes) -> list[int]:
    found = journal.read(key, waits=True)
    return [json.loads(sample.answer)["x"] for sample in found or ()]


def pools(journal: Journal) -> dict[str, list[int]]:
    return {chr(key[0]): pool(journal, key) for key in (A, B, C)}


class Held:
    """Keeps a rewriting from coming to its end, as a slow disk does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.entered, self._go = threading.Event(), threading.Event()
        real = os.fsync

        def wait(handle: int) -> None:
            if threading.current_thread().name == "rewriting":
                self.entered.set()
                assert self._go.wait(60)
            real(handle)

        patch.setattr(os, "fsync", wait)

    def release(self) -> None:
        self._go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.release()


def test_answers_go_on_to_the_disk(tmp_path: Path, held: Held) -> None:
    """While the file is written anew, lines go to the disk as ever, and are kept."""
    path = tmp_path / "cache.jsonl"
    with opened(tmp_path) as journal:
        put(journal, A, 1, 2, 3)
        put(journal, B, 1)
        put(journal, A, 4, slot=0)
        done = journal.compact()
        assert held.entered.wait(60)
        put(journal, A, 5, slot=1)
        put(journal, C, 6)
        put(journal, B, 7)
        until(lambda: journal.pending == 0)
        assert not done.done()
        assert examine(path, lambda number, why: None).samples == 6
        wanted = {"a": [4, 5, 3], "b": [1, 7], "c": [6]}
        assert pools(journal) == wanted
        held.release()
        assert done.result(60) is None
        assert pools(journal) == wanted
        put(journal, C, 8)
    with opened(tmp_path) as journal:
        assert pools(journal) == {**wanted, "c": [6, 8]}
        assert len(list(calls_of(journal.path, 9, 9))) == 3
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]


def test_given_up_at_the_end(tmp_path: Path, held: Held) -> None:
    """A journal that closes gives up a rewriting at once, and nothing has happened."""
    journal = Journal(tmp_path)
    journal.load()
    put(journal, A, 1)
    put(journal, A, 2, slot=0)
    until(lambda: journal.pending == 0)
    done = journal.compact()
    assert held.entered.wait(60)
    put(journal, B, 3)
    journal.close()
    with pytest.raises(StoreError):
        done.result(0)
    assert names(tmp_path) == ["cache.jsonl", "cache.lock"]
    with opened(tmp_path) as journal:
        assert pools(journal) == {"a": [2], "b": [3], "c": []}
        held.release()
        put(journal, C, 4)
        journal.compact().result(60)
        assert pools(journal) == {"a": [2], "b": [3], "c": [4]}


@pytest.mark.parametrize("is_all", [True, False])
def test_cleared_meanwhile(is_all: bool, tmp_path: Path, held: Held) -> None:
    """What is cleared while it is copied stays cleared, and what comes later stays."""
    with opened(tmp_path) as journal:
        put(journal, A, 1)
        put(journal, B, 2)
        compacted = journal.compact()
        assert held.entered.wait(60)
        put(journal, A, 3)
        until(lambda: journal.pending == 0)
        cleared = journal.clear() if is_all else clear_some(journal, of_a)
        put(journal, A, 4)
        held.release()
        assert cleared.result(60) is compacted.result(10) is None
        wanted = {"a": [4], "b": [] if is_all else [2], "c": []}
        assert pools(journal) == wanted
    assert b'{"x":1}' not in (tmp_path / "cache.jsonl").read_bytes()
    with opened(tmp_path) as journal:
        assert pools(journal) == wanted


def test_removed_meanwhile(tmp_path: Path, held: Held) -> None:
    """What is removed while it is copied stays removed."""
    with opened(tmp_path) as journal:
        put(journal, A, 1)
        done = journal.compact()
        assert held.entered.wait(60)
        journal.remove(A)
        until(lambda: journal.pending == 0)
        held.release()
        done.result(60)
    with opened(tmp_path) as journal:
        assert pools(journal) == {"a": [], "b": [], "c": []}


def test_the_order_of_use_stays(tmp_path: Path) -> None:
    """The order of use is the same after a compaction."""
    with opened(tmp_path) as journal:
        for key in (A, B, C):
            put(journal, key, 1)
        journal.touch(A)
        journal.compact().result(60)
        assert list(journal.index) == [B, C, A]


def test_under_load(tmp_path: Path) -> None:
    """Compacted again and again under load, all pools are what they should be."""
    numbers = random.Random(7)
    model: dict[bytes, dict[int, int]] = {A: {}, B: {}, C: {}}
    for _ in range(3):
        with opened(tmp_path) as journal:
            compactions = []
            for n in range(400):
                key = numbers.choice((A, B, C))
                slot, count = numbers.randrange(20), numbers.randrange(1, 4)
                new = list(range(n * 10, n * 10 + count))
                put(journal, key, *new, slot=slot)
                model[key] |= {slot + i: x for i, x in enumerate(new)}
                if n % 25 == 0:
                    compactions.append(journal.compact())
                if numbers.random() < 0.1:
                    until(lambda: journal.pending == 0)
                if n % 10 == 0:
                    assert pool(journal, key) == [x for _, x in sorted(model[key].items())]
            for done in compactions:
                assert done.result(60) is None
            assert list(pools(journal).values()) == [
                [x for _, x in sorted(one.items())] for one in model.values()
            ]
    with opened(tmp_path) as journal:
        assert list(pools(journal).values()) == [
            [x for _, x in sorted(one.items())] for one in model.values()
        ]
        assert journal.index.samples == sum(map(len, model.values()))


def test_many_lines_of_one_key(tmp_path: Path) -> None:
    """A pool of many lines is compacted in a time that is bearable."""
    with opened(tmp_path) as journal:
        for n in range(1000):
            put(journal, A, n)
        put(journal, A, -1, slot=0)
        assert journal.compact().result(60) is None
        assert pool(journal, A) == [-1, *range(1, 1000)]
