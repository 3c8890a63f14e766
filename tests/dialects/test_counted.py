"""Answers to lists that tell only what all of it has used."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import counted
from tests.tables import each

ODD: list[Any] = [
    None, {}, [], [{}], [{"index": 1}], [{"index": 0}, {"index": 0}], [{"index": 0}, {"index": 2}],
    [{"index": "0"}], [{"index": True}, {"index": 0}], ["x"],
]  # fmt: skip


@each("rows", ODD)
def test_rows_that_are_not_told_apart(rows: Any) -> None:
    """Rows that have no index each, from 0 on, belong to nobody."""
    try:
        counted.in_order(rows)
    except Refused as refused:
        assert refused.reason is Reason.UNREADABLE
    else:
        raise AssertionError


def test_rows_in_another_order() -> None:
    """The index counts, and not the place."""
    rows = [{"index": 1, "a": 1}, {"index": 0, "a": 0}]
    assert counted.in_order(rows) == rows[::-1]
