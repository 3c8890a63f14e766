"""Regular expressions: what is refused, where they match, and how long they may take."""

from __future__ import annotations

import itertools
import time

import pytest

from sglang_cached_addon.core.regex import Regex
from tests.tables import each


@each(
    ("text", "why"),
    [
        ("(", "missing"),
        ("[", "missing"),
        (r"a\1", "no backreferences"),
        ("(?=a)b", "no look-around"),
        ("(?<!a)b", "no look-around"),
        ("(?>a)", "no look-around"),
        ("a{1,5000}", "repetition"),
        ("a**", "repetition"),
        ("\ud800", "surrogates"),
        ("", "matches where there is nothing"),
        ("a*", "matches where there is nothing"),
        ("(a|b?)", "matches where there is nothing"),
        ("^", "matches where there is nothing"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    """What RE2 does not have, and what matches nothing, is refused with words."""
    with pytest.raises(ValueError, match=why):
        Regex(text)


@each(
    ("regex", "text", "matches"),
    [
        (r"\d+", "a12b3", ["12", "3"]),
        ("é.", "xéab é", ["éa"]),
        (".", "日本", ["日", "本"]),
        (r"(?m)^x:[^\n]*\n*", "x: 1\n\na x: 2\nx: 3", ["x: 1\n\n", "x: 3"]),
        ("(a)(b)?", "abac", ["ab", "a"]),
        (r"\bx*", "ax xx", ["xx"]),
        ("(?i)ab", "AB", ["AB"]),
    ],
)
def test_where_it_matches(regex: str, text: str, matches: list[str]) -> None:
    """Matches are told in bytes of UTF-8, and never cut a letter in two."""
    data = text.encode()
    assert [data[a:b].decode() for a, b in Regex(regex).spans(data)] == matches


@each("regex", ["(a+)+b", "(a|a)*b", "(a|aa)+c", "a?" * 20 + "a" * 20 + "b", "(.*)*x", "(a*)*b"])
def test_no_text_makes_it_backtrack(regex: str) -> None:
    """What takes Python's own expressions for ever, takes these a moment."""
    begun = time.thread_time()
    if regex != "(a*)*b":
        assert list(Regex(regex).spans(b"a" * 100_000)) == []
    else:
        assert list(Regex(regex).spans(b"a" * 50 + b"b")) == [(0, 51)]
    assert time.thread_time() - begun < 5


def test_what_takes_long() -> None:
    """A long text is tried at its beginning first."""
    times = itertools.count(0.0, 0.004)
    regex, long = Regex(r"\d"), b"a 1" * 50_000
    assert regex.is_slow(long, lambda: next(times))  # by a clock that goes on with each match
    assert not regex.is_slow(long[: 64 << 10], lambda: next(times))
    assert not Regex("b").is_slow(long, lambda: 0.0)
