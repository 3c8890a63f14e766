"""What people ask to see."""

from __future__ import annotations

from math import inf

import pytest

from sglang_cached_addon.catalog.query import BadQuery, Query, key_prefix

NOW = 1_800_000_000.0


def test_queries() -> None:
    """All members are read; ages count back from now, and an empty value is none."""
    assert Query.read([], NOW) == Query("all", "", "", -inf, inf, "", 50, "")
    pairs = [("model", "org/m"), ("api", "chat"), ("text", "ä"), ("run", "r"), ("cursor", "1-2")]
    found = Query.read([*pairs, ("limit", "7"), ("since", "2h"), ("until", "1799999999.5")], NOW)
    assert found == Query("org/m", "chat", "ä", NOW - 7200, NOW - 0.5, "r", 7, "1-2")
    for text, age in (("90", 90), ("90s", 90), ("1.5m", 90), ("7d", 7 * 86400), ("2w", 14 * 86400)):
        assert Query.read([("since", text), ("until", "")], NOW).since == NOW - age


def test_what_is_not_understood() -> None:
    """What is not understood is told, and not taken for something else."""
    for name, value in (
        ("limit", "0"), ("limit", "1001"), ("limit", "-1"), ("limit", "x"), ("since", "soon"),
        ("since", "-5"), ("until", "5y"), ("until", "nan"), ("since", "1e9"), ("colour", "red"),
    ):  # fmt: skip
        with pytest.raises(BadQuery):
            Query.read([(name, value)], NOW)


def test_keys() -> None:
    """A key is named by at least four of its digits, whatever their case."""
    assert key_prefix("AbCd") == "abcd"
    assert key_prefix("0" * 64) == "0" * 64
    for text in ("", "abc", "0" * 65, "xyzw", "abcd ", "abcd\n", "../a"):
        with pytest.raises(BadQuery):
            key_prefix(text)
