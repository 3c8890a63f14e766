"""Tables, amounts and times, as people read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_cached_addon.cli import output
from tests.tables import each


@each(
    ("show", "value", "said"),
    [
        (output.shown_size, 0, "0 B"),
        (output.shown_size, 999, "999 B"),
        (output.shown_size, 1000, "1.0 KB"),
        (output.shown_size, 123_456, "123 KB"),
        (output.shown_size, 5_250_000_000, "5.2 GB"),
        (output.shown_size, 2e15, "2000.0 TB"),
        (lambda seconds: output.shown_age(1000.0, 1000.0 + seconds), -5, "0 s"),
        (lambda seconds: output.shown_age(1000.0, 1000.0 + seconds), 119, "119 s"),
        (lambda seconds: output.shown_age(1000.0, 1000.0 + seconds), 120, "2 min"),
        (lambda seconds: output.shown_age(1000.0, 1000.0 + seconds), 7200, "2 h"),
        (lambda seconds: output.shown_age(1000.0, 1000.0 + seconds), 2 * 86_400, "2 d"),
        (output.shown_text, "a\n  b\tc", "a b c"),
        (output.shown_text, "\x1b[31mred\u202e", "\\x1b[31mred\\u202e"),
        (lambda text: output.shown_text(text, 3), "abcdef", "abc..."),
    ],
)
def test_shown(show: Callable[[Any], str], value: Any, said: str) -> None:
    """Amounts have their unit, and text that was sent moves nothing on a terminal."""
    assert show(value) == said


def test_table() -> None:
    """Columns are as wide as what is in them, numbers stand to the right, and a terminal's width
    is kept."""
    rows = [["abc", "5", "a long text"], ["d", "1234", ""]]
    assert list(output.table(["key", "n", "text"], rows)) == [
        "key     n  text",
        "abc     5  a long text",
        "d    1234",
    ]
    assert list(output.table(["key", "n", "text"], rows, 14))[1] == "abc     5  a l"


def test_members() -> None:
    """Names and values stand below each other, but for what has no value."""
    assert list(output.members([("a", 1), ("long", "x\ny"), ("none", None), ("empty", "")])) == [
        "a     1",
        "long  x y",
    ]
