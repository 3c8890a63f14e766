"""Paths into JSON: how they are written, and what they lead to."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.json_path import MOST, Path, TooMuch
from tests.tables import each

BODY: dict[str, Any] = {
    "system": [{"type": "text", "text": "s0"}, {"type": "text", "text": "s1"}],
    "messages": [
        {"role": "user", "content": "m0"},
        {"role": "user", "content": [{"type": "text", "text": "m1"}, {"n": 1, "x": None}]},
    ],
    "prompt": ["p0", "p1", ["p2"]],
    "text": "t",
    "n": 3,
    "a-b": {"text": {"text": "deep"}},
    "0": "zero",
}

EVERY = "text s0 text s1 user m0 user text m1 p0 p1 p2 t deep zero"
"""All strings, as often as they are there."""


def found(path: str, body: Any = BODY) -> list[str]:
    return sorted(text for _, text in Path.parse(path).strings(body))


@each(
    ("path", "texts"),
    [
        ("text", "t"),
        ("system[*].text", "s0 s1"),
        ("system[1].text", "s1"),
        ("system[2].text", ""),
        ("system.text", ""),
        ("system", ""),
        ("messages[*].content", "m0"),
        ("messages[*].content[*].text", "m1"),
        ("messages[*].content.*", ""),
        ("messages[*].*", "m0 user user"),
        ("prompt", ""),
        ("prompt[*]", "p0 p1"),
        ("prompt[*][*]", "p2"),
        ("prompt[2][0]", "p2"),
        ("prompt.**", "p0 p1 p2"),
        ("prompt.*", ""),
        ("text[*]", ""),
        ("0", "zero"),
        ("[0]", ""),
        ("a-b.text.text", "deep"),
        ("*", "t zero"),
        ("**.text", "deep m1 s0 s1 t"),
        ("**.content.**", "m0 m1 text"),
        ("**.**", " ".join(sorted(EVERY.split()))),
        ("a-b.**.text", "deep"),
        ("missing.**", ""),
    ],
    ids=lambda row: row[0],
)
def test_what_a_path_leads_to(path: str, texts: str) -> None:
    """A path leads to strings alone, and to each of them once."""
    assert found(path) == texts.split()
    assert Path.parse(path).text == path
    for location, text in Path.parse(path).strings(BODY):
        value: Any = BODY
        for key in location:
            value = value[key]
        assert value == text


def test_many_depths() -> None:
    """However often a path says any depth, each value is looked at once."""
    nested: Any = "x"
    for _ in range(200):
        nested = {"a": nested, "b": []}
    assert found(".".join(["**"] * 50), nested) == ["x"]
    assert found(".".join(["**", "a"] * 50), nested) == ["x"]


def test_too_many_values() -> None:
    """Of a body with very many values, only so many are looked at: numbers do not count."""
    assert found("**", {"ids": list(range(2 * MOST)), "text": "x"}) == ["x"]
    for many in ([[[]]] * MOST, ["x"] * (MOST + 1), [{"a": [0]}] * MOST):
        with pytest.raises(TooMuch):
            found("**.text", {"many": many})
        assert found("text[*]", {"many": many, "text": ["x"]}) == ["x"]


@each(
    "path",
    ["", ".", "a.", ".a", "a..b", "a[", "a[]", "a[-1]", "a[x]", "a]", "a b", "a[*]b", "***", "a.b[",
     "[", "a[1", "a[9999999999]"],
)  # fmt: skip
def test_what_is_no_path(path: str) -> None:
    """What is written otherwise is refused, with words on how paths are written."""
    with pytest.raises(ValueError, match=r"messages\[\*\]\.content"):
        Path.parse(path)
