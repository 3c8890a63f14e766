"""Where the text of the first tokens of an answer ends."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects import cutting
from tests.tables import each

ASCII = [(2, 1), (4, 2), (4, 3), (6, 5)]


@each(
    ("text", "marks", "count", "found"),
    [
        ("abcdefgh", ASCII, 1, "ab"),
        ("abcdefgh", ASCII, 2, "abcd"),
        ("abcdefgh", ASCII, 3, "abcd"),
        ("abcdefgh", ASCII, 4, None),  # two tokens came together
        ("abcdefgh", ASCII, 5, "abcdef"),
        ("abcdefgh", ASCII, 6, None),
        ("abcdefgh", [], 1, None),
        # What comes next is no ASCII: a part of it may have been held back.
        ("ab\N{LATIN SMALL LETTER E WITH ACUTE}d", [(2, 1), (3, 2)], 1, None),
        ("ab\N{LATIN SMALL LETTER E WITH ACUTE}d", [(2, 1), (3, 2)], 2,
         "ab\N{LATIN SMALL LETTER E WITH ACUTE}"),
        # ... also where an event in between brought no text.
        ("ab\N{HIRAGANA LETTER A}", [(2, 1), (2, 2), (3, 4)], 1, None),
        ("ab\N{HIRAGANA LETTER A}", [(2, 1), (2, 2)], 2, None),
        # Further behind it does not matter.
        ("abc\N{HIRAGANA LETTER A}", [(2, 1), (3, 2)], 1, "ab"),
        ("ab", [(2, 1), (2, 2)], 1, "ab"),
    ],
)  # fmt: skip
def test_text_at(text: str, marks: Any, count: int, found: str | None) -> None:
    """A boundary is taken where an event ended, and surely nothing was held back."""
    assert cutting.text_at(text, marks, count) == found


@each(("versions", "found"), [
    ([{"version": "v", "start": 0, "end": 9}], [{"version": "v", "start": 0, "end": 3}]),
    ([], []), (None, None), ([1], [1]),
])  # fmt: skip
def test_with_end(versions: Any, found: Any) -> None:
    assert cutting.with_end(versions, 3) == found


def test_others() -> None:
    """A field that asks for nothing is none."""
    assert not cutting.has_others({"a": 1, "b": None, "c": False}, ("a",))
    assert cutting.has_others({"a": 1, "b": 0}, ("a",))
