"""Plan and commit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sglang_cached_addon.cache import Plan, Sample, answers, commit, plan
from sglang_cached_addon.dialects.base import Call, Generation
from sglang_cached_addon.store.memory import Memory


class Store(Memory):
    def append(  # type: ignore[override]
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
    ) -> None:
        super().append(key, f"{dialect} {content.decode()}", samples, raw)


def sample(answer: str) -> Sample:
    return Sample(answer.encode(), 1.0, 2.0, 3)


def store_of(pools: dict[str, str]) -> Store:
    """A store whose pools hold one sample per letter."""
    store = Store()
    for key, letters in pools.items():
        store.append(key.encode(), "d", b"", [sample(letter) for letter in letters])
    return store


def plan_of(items: str, n: int, store: Store) -> Plan:
    """A plan of a call whose items are letters, each its own key."""
    contents = tuple(letter.encode() for letter in items)
    return plan(Call({}, contents, n, len(items) > 1), contents, store)


@pytest.mark.parametrize(
    ("pools", "items", "n", "stored", "short"),
    [
        ({}, "a", 1, [""], (1,)),
        ({"a": "12"}, "a", 1, ["1"], (0,)),
        ({"a": "12"}, "a", 2, ["12"], (0,)),
        ({"a": "12"}, "a", 5, ["12"], (3,)),
        ({"b": "12"}, "a", 2, [""], (2,)),
        ({"a": "1", "b": "23"}, "ab", 2, ["1", "23"], (1, 0)),
        ({"a": "1", "b": "23"}, "ba", 1, ["2", "1"], (0, 0)),
        ({"b": "1"}, "abc", 1, ["", "1", ""], (1, 0, 1)),
        ({"a": "1234"}, "aa", 2, ["12", "34"], (0, 0)),
        ({"a": "123"}, "aa", 2, ["12", "3"], (0, 1)),
        ({"a": "1"}, "aa", 2, ["1", ""], (1, 2)),
        ({"a": "12"}, "aaa", 1, ["1", "2", ""], (0, 0, 1)),
        ({"a": "123", "b": "4"}, "aba", 1, ["1", "4", "2"], (0, 0, 0)),
        ({}, "aa", 1, ["", ""], (1, 1)),
    ],
)
def test_plan(
    pools: dict[str, str], items: str, n: int, stored: list[str], short: tuple[int, ...]
) -> None:
    """A stored sample would be generated again, come twice in one answer, or be another's."""
    made = plan_of(items, n, store_of(pools))
    assert ["".join(s.answer.decode() for s in pool) for pool in made.stored] == stored
    assert made.shortfalls == short
    assert made.have == sum(map(len, stored))
    assert made.have + sum(short) == made.call.total
    assert [s.answer.decode() for s in made.samples()] == list("".join(stored))


def test_plan_does_not_change() -> None:
    """An answer that is being put together would grow by what another request stored."""
    store = store_of({"a": "1"})
    made = plan_of("a", 3, store)
    store.append(b"a", "d", b"", [sample("2")])
    assert made.shortfalls == (2,)
    assert answers(made) == [[b"1"]]


def test_commit() -> None:
    """New samples would be lost, or be found under another prompt."""
    store = store_of({"a": "1"})
    made = plan_of("abc", 2, store)
    new = [Generation(0, b"2", 7), Generation(1, b"3", 8), Generation(1, b"4", 9)]
    new += [Generation(2, b"5", 1), Generation(2, b"6", 2)]
    commit(made, "chat", new, store, now=10.0, seconds=0.5)
    assert [s.answer for s in store.get(b"a")] == [b"1", b"2"]
    assert list(store.get(b"b")) == [Sample(b"3", 10.0, 0.5, 8), Sample(b"4", 10.0, 0.5, 9)]
    assert [s.answer for s in store.get(b"c")] == [b"5", b"6"]
    assert store.by_dialect == {"d ": 1, "chat a": 1, "chat b": 2, "chat c": 2}


def test_commit_of_a_repeated_prompt() -> None:
    """`["a", "a"]` would be stored as two calls, or in another order than it was answered."""
    store = Store()
    made = plan_of("aba", 1, store)
    new = [Generation(0, b"1", 0), Generation(1, b"2", 0), Generation(2, b"3", 0)]
    commit(made, "d", new, store, now=0.0, seconds=0.0)
    assert [s.answer for s in store.get(b"a")] == [b"1", b"3"]
    assert [s.answer for s in store.get(b"b")] == [b"2"]
    again = plan_of("aba", 1, store)
    assert answers(again) == answers(made, new)


def test_commit_of_nothing() -> None:
    """An empty answer would leave an empty pool that counts as a key."""
    store = Store()
    commit(plan_of("a", 1, store), "d", [], store, now=0.0, seconds=0.0)
    assert len(store) == 0


@pytest.mark.parametrize(
    ("pools", "items", "n", "new", "whole"),
    [
        ({}, "a", 2, [(0, "x"), (0, "y")], [["x", "y"]]),
        ({"a": "1"}, "a", 3, [(0, "x"), (0, "y")], [["1", "x", "y"]]),
        ({"a": "1", "b": "23"}, "ab", 2, [(0, "x")], [["1", "x"], ["2", "3"]]),
        ({"b": "1"}, "abc", 1, [(0, "x"), (2, "y")], [["x"], ["1"], ["y"]]),
        ({"a": "1"}, "aa", 2, [(0, "x"), (1, "y"), (1, "z")], [["1", "x"], ["y", "z"]]),
    ],
)
def test_answers(
    pools: dict[str, str], items: str, n: int, new: list[tuple[int, str]], whole: list[list[str]]
) -> None:
    """A prompt would be answered by another prompt's sample."""
    generations = [Generation(item, text.encode(), 0) for item, text in new]
    made = plan_of(items, n, store_of(pools))
    assert answers(made, generations) == [[t.encode() for t in pool] for pool in whole]
