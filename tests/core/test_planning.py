"""Plans, and new samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.planning import PIECE, Plan, additions, plan
from sglang_cached_addon.store.memory import MemoryStore
from tests.tables import each

NOW = 1000.0


class Store(MemoryStore):
    @property
    def now(self) -> float:
        return NOW

    def append(self, addition: Addition) -> bool:
        api = f"{addition.dialect} {addition.content.decode()}"
        return super().append(replace(addition, dialect=api))


def sample(answer: str, stored_at: float = 1.0) -> Sample:
    return Sample(answer.encode(), stored_at, 2.0, 3)


def store_of(pools: dict[str, str]) -> Store:
    """A store whose samples are digits that tell when they were stored."""
    store = Store()
    for key, digits in pools.items():
        samples = [sample(digit, float(digit)) for digit in digits]
        store.append(Addition(key.encode(), "d", b"", samples))
    return store


def plan_of(items: str, n: int, store: Store, since: float = -inf) -> Plan:
    """A plan of a call whose items are letters, each its own key."""
    contents = tuple(letter.encode() for letter in items)
    return plan(Call({}, contents, n, len(items) > 1), contents, store, since)


def letters(pools: Sequence[Sequence[Sample]]) -> list[str]:
    """The answers of each item."""
    return ["".join(s.answer.decode() for s in pool) for pool in pools]


def commit(
    made: Plan,
    dialect: str,
    new: list[tuple[int, Sample]],
    store: Store,
    *,
    raw: bytes = b"",
    since: float = -inf,
) -> None:
    """Stores new samples piece by piece."""
    for one in additions(made, new, dialect, raw, since):
        store.append(one)


def new_of(*pairs: tuple[int, str]) -> list[tuple[int, Sample]]:
    return [(item, sample(letter)) for item, letter in pairs]


@each(
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
    """A call takes each stored sample of its own prompts once, and lacks the others; a pool needs
    what all its items need together."""
    made = plan_of(items, n, store_of(pools))
    assert letters(made.stored) == stored
    assert made.shortfalls == short
    assert made.have == sum(map(len, stored))
    assert made.have + sum(short) == made.call.total
    lacking = {key for key, lacks in zip(made.keys, short, strict=True) if lacks}
    assert made.needs == {key: n * made.keys.count(key) for key in lacking}
    assert [s.answer.decode() for s in made.samples()] == list("".join(stored))


SINCE: list[tuple[dict[str, str], str, int, float, list[str]]] = [
    ({"a": "12"}, "a", 2, -inf, ["12"]),
    ({"a": "12"}, "a", 2, 1.0, ["12"]),
    ({"a": "12"}, "a", 2, 1.5, ["2"]),
    ({"a": "12"}, "a", 1, 1.5, ["2"]),
    ({"a": "12"}, "a", 2, 2.5, [""]),
    ({"a": "12"}, "a", 2, inf, [""]),
    ({"a": "3142"}, "a", 2, 2.0, ["34"]),  # a clock that was set back
    ({"a": "12", "b": "34"}, "ab", 2, 2.0, ["2", "34"]),
    ({"a": "1234"}, "aa", 1, 2.0, ["2", "3"]),
    ({"a": "1234"}, "aa", 2, 3.0, ["34", ""]),
]


@each(("pools", "items", "n", "since", "stored"), SINCE)
def test_plan_since(
    pools: dict[str, str], items: str, n: int, since: float, stored: list[str]
) -> None:
    """Samples that are too old do not count, and all others do."""
    assert letters(plan_of(items, n, store_of(pools), since).stored) == stored


@each(
    ("pools", "items", "n", "new", "whole"),
    [
        ({}, "a", 2, [(0, "x"), (0, "y")], ["xy"]),
        ({"a": "1"}, "a", 3, [(0, "x"), (0, "y")], ["1xy"]),
        ({"a": "1"}, "a", 3, [(0, "x")], ["1x"]),
        ({"a": "1"}, "a", 3, [], ["1"]),
        ({"a": "1", "b": "23"}, "ab", 2, [(0, "x")], ["1x", "23"]),
        ({"b": "1"}, "abc", 1, [(0, "x"), (2, "y")], ["x", "1", "y"]),
        ({"a": "1"}, "aa", 2, [(0, "x"), (1, "y"), (1, "z")], ["1x", "yz"]),
        ({"a": "1"}, "ab", 1, [(0, "x"), (1, "y")], ["1", "y"]),  # more than were short
    ],
)
def test_with_samples(
    pools: dict[str, str], items: str, n: int, new: list[tuple[int, str]], whole: list[str]
) -> None:
    """New samples go to their own items, and none has more than `n`."""
    made = plan_of(items, n, store_of(pools))
    before = letters(made.stored)
    assert letters(made.with_samples(new_of(*new)).stored) == whole
    assert letters(made.stored) == before


def test_again() -> None:
    """Planned again, a call sees new samples of the named pools, and keeps what it had of the
    others."""
    store = store_of({"a": "1"})
    made = plan_of("abc", 2, store).with_samples(new_of((1, "x"), (1, "y")))
    for key, letter in {"a": "2", "b": "3", "c": "4"}.items():
        store.append(Addition(key.encode(), "d", b"", [sample(letter)]))
    assert letters(made.stored) == ["1", "xy", ""], "it changed with the store"
    again = made.again(made.needs, store)
    assert letters(again.stored) == ["12", "xy", "4"]
    assert again.needs == {b"c": 2}
    assert letters(made.again([], store).stored) == ["1", "xy", ""]


def test_additions() -> None:
    """A large answer is stored in pieces, of which none replaces an earlier one."""
    store = store_of({"a": "123456", "b": "1"})
    made = plan_of("ab", 6, store, inf)
    new = [(0, sample(letter * (PIECE // 2), NOW)) for letter in "vwxyz"] + new_of((1, "k"))
    found = [
        ("".join(s.answer[:1].decode() for s in one.samples), one.key, one.is_last)
        for one in additions(made, new, "d")
    ]
    assert found == [
        ("vw", b"a", False), ("xy", b"a", False), ("z", b"a", True), ("k", b"b", True),
    ]  # fmt: skip
    commit(made, "d", new, store, since=inf)
    kept = [[s.answer[:1] for s in store.get(key)] for key in (b"a", b"b")]
    assert kept == [[b"v", b"w", b"x", b"y", b"z", b"6"], [b"k"]]


def test_a_long_list() -> None:
    """Long lists are planned and stored in linear time."""
    count = 20_000
    keys = tuple(b"%d" % (i // 2) for i in range(count))
    long = plan(Call({}, keys, 1, True), keys, Store())
    assert long.needs == dict.fromkeys(keys, 2)
    same = (b"a",) * count
    store = store_of({"a": "1" * 5000})
    assert plan(Call({}, same, 1, True), same, store, since=0.5).have == 5000
    new = [(i, sample("y")) for i in range(count)]
    commit(plan(Call({}, same, 1, True), same, Store()), "d", new, store)
    assert len(store.get(b"a")) == 5000 + count


def test_the_future_does_not_count() -> None:
    """A sample from the future does not count."""
    store = Store()
    store.append(Addition(b"a", "d", b"", [sample("1", NOW + 3600), sample("2", NOW)]))
    assert letters(plan_of("a", 2, store).stored) == ["12"]
    assert letters(plan_of("a", 2, store, NOW - 60).stored) == ["2"]
    store.append(Addition(b"a", "d", b"", [sample("3", NOW)], since=NOW - 60))
    assert letters([store.get(b"a")]) == ["32"]
