"""Which pools a clear is about, and that all agree on it in the end."""

from __future__ import annotations

import pytest

from sglang_cached_addon.store.redis import clears
from sglang_cached_addon.store.redis.clears import Clears
from tests.tables import each

ONE, TWO = b"\x01" * 8, b"\x02" * 8
KEY_ONE, KEY_TWO = ONE + b"k" * 24, TWO + b"k" * 24


@each(
    ("kind", "one", "two"),
    [
        (clears.kind_of(None), 1, 1),
        (clears.kind_of(ONE), 1, 0),
        (clears.kind_of(ONE, others=True), 0, 1),
    ],
)
def test_kinds(kind: str, one: int, two: int) -> None:
    found = Clears({kind: 1})
    assert (found.of(KEY_ONE), found.of(KEY_TWO)) == (one, two)


@each("others", [False, True])
@each("model", [None, ONE])
def test_meaning(model: bytes | None, others: bool) -> None:
    assert clears.meaning(clears.kind_of(model, others=others)) == (
        model, others and model is not None
    )  # fmt: skip


def test_what_means_nothing() -> None:
    with pytest.raises(ValueError, match="not a kind"):
        clears.meaning("last")


def test_the_last_one_counts() -> None:
    found = Clears({"all": 3})
    assert found.of(KEY_ONE) == 3
    found.take({clears.kind_of(ONE): 5, clears.kind_of(ONE, others=True): 4})
    assert (found.of(KEY_ONE), found.of(KEY_TWO), found.last) == (5, 4, 5)


def test_two_agree() -> None:
    """Two that hear of the same clears in any order agree."""
    news = [{"all": 1}, {clears.kind_of(ONE): 2}, {"all": 3}, {clears.kind_of(TWO): 4}]
    one, two = Clears(), Clears()
    for number in news:
        one.take(number)
    for number in reversed(news):
        two.take(number)
    assert one.numbers == two.numbers
    assert one.take(two.numbers) == []
    assert two.take({"all": 2, clears.kind_of(TWO): 9}) == [clears.kind_of(TWO)]
