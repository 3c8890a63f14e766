"""What displays of bodies share, and what is shown of an API without a display."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import (
    GENERAL,
    Passage,
    display_of,
    prompts,
    shortened,
    written,
)
from tests.tables import each


@each(
    ("value", "passages"),
    [
        ("sea", [Passage("prompt", "sea")]),
        ([1, 2], [Passage("prompt", "[1,2]", ("2 token ids",))]),
        (["a", "b"], [Passage("prompt 1 of 2", "a"), Passage("prompt 2 of 2", "b")]),
        ([[1], [2, 3]], [Passage("prompt 1 of 2", "[1]", ("1 token ids",)),
                         Passage("prompt 2 of 2", "[2,3]", ("2 token ids",))]),
        ([[0.5], [1.5]], [Passage("prompt", "[[0.5],[1.5]]", ("2 token ids",))]),
        ([], []),
        ({"x": 1}, [Passage("prompt", '{"x":1}')]),
    ],
)  # fmt: skip
def test_prompts(value: Any, passages: list[Passage]) -> None:
    """A field has one prompt or a list of them: text, ids, or vectors."""
    assert prompts("token ids", value) == passages


def test_shortened() -> None:
    """Of a long text, the begin and the end are shown, and how much is missing."""
    assert shortened("abc", 3) == "abc"
    assert shortened("a" * 6 + "b" * 6, 8) == "aaaaaa [... 4 more characters ...] bb"


def test_written() -> None:
    """A value that cannot be written is no error."""
    deep: Any = []
    for _ in range(1000):
        deep = [deep]
    assert written(deep) == "(nested too deep)"
    assert written("text") == "text"
    assert written({"a": [1]}) == '{"a":[1]}'


def test_general() -> None:
    """An API without a display of its own has all of its events shown."""
    assert display_of(object()) is GENERAL
    assert GENERAL.passages({"a": 1}) == []
    reader = GENERAL.reader()
    reader.add({"a": 1})
    reader.skip()
    assert [sample.text for sample in reader.samples()] == ['{\n  "a": 1\n}', " [...] "]
    assert reader.facts() == []
