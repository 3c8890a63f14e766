"""Where entries are looked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from sglang_cached_addon.catalog.entry import Entry
from sglang_cached_addon.catalog.query import BadQuery, Query
from sglang_cached_addon.catalog.shelves import JournalShelf, MemoryShelf, Shelf
from sglang_cached_addon.catalog.sieve import Sieve
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.dialects import installed
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.disk import DiskStore
from sglang_cached_addon.store.journal import backwards
from sglang_cached_addon.store.memory import MemoryStore
from tests.catalog.test_entry import sample

API = "sglang-generate"
DIALECTS = {dialect.name: dialect for dialect in installed().values()}


def key_of(number: int) -> bytes:
    return b"model %d %07d " % (number % 2, number) + b"." * 16


def add(store: OpenStore, number: int, *said: str, at: float | None = None) -> None:
    samples = [sample(text, 1.8e9 + number if at is None else at) for text in said]
    call = orjson.dumps({"text": f"ask {number}."})
    store.append(Addition(key_of(number), API, call, samples))


def numbers(entries: Sequence[Entry]) -> list[int]:
    return [int(entry.key[8:16]) for entry in entries]


def look(shelf: Shelf, cursor: str = "", *, limit: int = 1000, **query: object) -> list[int]:
    """The numbers of what is found, gone on from page to page."""
    found: list[int] = []
    while True:
        page: list[Entry] = []
        for seen in shelf.look(Sieve(Query(**query)), cursor):  # type: ignore[arg-type]
            page += [seen.entry] if seen.entry else []
            if len(page) == limit:
                cursor = str(seen.cursor)
                break
        else:
            return found + numbers(page)
        found += numbers(page)


@pytest.fixture(params=["disk", "memory", "follower"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[OpenStore, Shelf]]:
    """Twenty entries, of which the fifth has three samples of three times."""
    store: OpenStore
    if request.param == "memory":
        store = MemoryStore(keeps_calls=True)
        fill(store)
        yield store, MemoryShelf(store.memory, DIALECTS)
        return
    with closing(DiskStore(tmp_path)) as store:
        fill(store)
        if request.param == "disk":
            assert store.journal
            yield store, JournalShelf(store.journal, DIALECTS)
            return
        store.compact().result(30)
        with closing(DiskStore(tmp_path, is_follower=True)) as follower:
            assert follower.journal
            yield follower, JournalShelf(follower.journal, DIALECTS)


def fill(store: OpenStore) -> None:
    for number in range(20):
        add(store, number, f"said {number}.")
    add(store, 5, "more", at=1.8e9 + 30)
    add(store, 5, "still more", at=1.8e9 + 31)
    store.append(Addition(key_of(99), FAMILY, b"", [Sample(b'{"max_tokens":5}', 1.8e9, 0.0, 0)]))


def test_one(shelf: tuple[OpenStore, Shelf]) -> None:
    """An entry has all its samples, in their order, and what was asked."""
    entry = shelf[1].get(key_of(5))
    assert entry and list(entry.asked) == ["ask 5."]
    assert [entry.said(each) for each in entry.samples] == ["said 5.", "more", "still more"]
    assert entry.size > 200
    assert shelf[1].get(key_of(98)) is None
    assert shelf[1].get(key_of(99)) is None


def test_all(shelf: tuple[OpenStore, Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry comes once, whatever the page and the pieces that are read; the variants of
    families are none."""
    monkeypatch.setattr(backwards, "PIECE", 500)
    newest = list(range(19, -1, -1))
    if isinstance(shelf[1], JournalShelf):  # what was stored last comes first
        newest = [5, *(number for number in newest if number != 5)]
    for limit in (1, 2, 7, 1000):
        assert look(shelf[1], limit=limit) == newest
        assert look(shelf[1], limit=limit, api=API) == newest
        assert look(shelf[1], limit=limit, api="openai-chat") == []


def test_texts(shelf: tuple[OpenStore, Shelf], monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is found in the prompt and in each answer, and an entry that has it twice is found
    once."""
    monkeypatch.setattr(backwards, "PIECE", 500)
    for limit in (1, 2, 1000):
        for text, found in (
            ("Ask 7.", [7]), ("SAID 7.", [7]), ("more", [5]), ("still", [5]), ("said 5.", [5]),
            ("k 1", [19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 1]), ("stop", []), ("max_tokens", []),
        ):  # fmt: skip
            assert look(shelf[1], limit=limit, text=text) == found, text
        assert sorted(look(shelf[1], limit=limit, text="ask")) == list(range(20))


def test_models(shelf: tuple[OpenStore, Shelf]) -> None:
    """What is of other models is passed over."""
    found = []
    for seen in shelf[1].look(Sieve(Query(), models=(key_of(1)[:8],)), ""):
        found += [seen.entry] if seen.entry else []
    assert sorted(numbers(found)) == list(range(1, 20, 2))


def test_names(shelf: tuple[OpenStore, Shelf]) -> None:
    """Keys are found by how they begin."""
    for prefix, found in (
        (key_of(7).hex(), {7}), (key_of(5)[:15].hex(), {5}),
        (key_of(5)[:14].hex(), {1, 3, 5, 7, 9}),
        (b"mode".hex(), set(range(20))), ("0123", set()),
    ):  # fmt: skip
        assert set(shelf[1].named(prefix)) == {key_of(number) for number in found}, prefix


def test_odd_cursors(shelf: tuple[OpenStore, Shelf]) -> None:
    """What is no cursor is refused."""
    for cursor in ("x", "-1", "1-2", "1-2-3-x", "é"):
        with pytest.raises(BadQuery):
            list(shelf[1].look(Sieve(Query()), cursor))


def test_what_is_gone(tmp_path: Path) -> None:
    """What was removed, or replaced, is not found, though it still is in the file."""
    with closing(DiskStore(tmp_path)) as store:
        fill(store)
        assert store.journal
        shelf = JournalShelf(store.journal, DIALECTS)
        store.delete(key_of(7)).result(30)
        replaced = Addition(key_of(8), API, b"", [sample("anew", 1.9e9)], since=1.85e9)
        store.append(replaced)
        store.delete(key_of(9)).result(30)
        assert look(shelf, text="said 7.") == look(shelf, text="said 8.") == []
        assert look(shelf, text="anew") == [8]
        assert 7 not in look(shelf) and look(shelf)[0] == 8
        add(store, 7, "again", at=1.9e9 + 1)
        assert look(shelf)[:2] == [7, 8]
        assert look(shelf, text="ask 7.") == [7] and look(shelf, text="said 7.") == []
        assert look(shelf, text="ask 8.") == [8]
        entry = shelf.get(key_of(8), seeks_call=True)
        assert entry and list(entry.asked) == ["ask 8."]


def test_lines_that_wait(tmp_path: Path) -> None:
    """What the disk has not taken yet is found."""
    with closing(DiskStore(tmp_path)) as store:
        fill(store)
        assert store.journal
        shelf = JournalShelf(store.journal, DIALECTS)
        add(store, 20, "new", at=1.9e9)
        assert look(shelf)[0] == 20
        assert look(shelf, text="new") == [20]


def test_what_is_too_old(tmp_path: Path) -> None:
    """Samples that have expired are not shown, nor is an entry that has no others."""
    with closing(DiskStore(tmp_path)) as store:
        fill(store)
        assert store.journal
        shelf = JournalShelf(store.journal, DIALECTS, lambda at: at < 1.8e9 + 7.5)
        assert look(shelf) == look(shelf, text="i") == [5, *range(19, 7, -1)]
        entry = shelf.get(key_of(5))
        assert entry and [entry.said(each) for each in entry.samples] == ["more", "still more"]
        assert shelf.get(key_of(7)) is None
