"""Headings, texts and tables as lines."""

from __future__ import annotations

from sglang_cached_addon.dialects import layout
from sglang_cached_addon.dialects.display import MAX_TEXT, Passage
from sglang_cached_addon.dialects.layout import MAX_PASSAGES, MAX_SHOWN, WIDTH, Style


def text(lines: object) -> list[str]:
    return [line for _, line in lines]  # type: ignore[attr-defined]


def test_opening() -> None:
    """What the cache said comes first."""
    assert list(layout.opening("api", ["model m"], ["HIT", "key k"])) == [
        (Style.HEADER, "cache: HIT · key k"), (Style.HEADER, "api · model m"),
    ]  # fmt: skip
    assert text(layout.opening("api", [], [])) == ["api"]
    facts = [f"fact number {k}" for k in range(9)]
    first, *more = text(layout.opening("api", facts, []))
    assert max(map(len, (first, *more))) <= WIDTH and all(line[:2] == "  " for line in more)
    assert " · ".join([first, *(line[2:] for line in more)]).split(" · ") == ["api", *facts]


def test_passages() -> None:
    """A heading with its facts in one line, and the text beneath, line by line."""
    empty, heading, *rest = layout.passages([Passage("user", "a\nb", ("x\ny",))])
    assert empty == (Style.TEXT, "")
    assert heading[0] is Style.HEADER
    assert heading[1].startswith("── user · x y ─")
    assert rest == [(Style.TEXT, "a"), (Style.TEXT, "b")]


def test_long_lines() -> None:
    """Long lines are broken where words end, and joined they are as before."""
    for long in ("word " * 100, "x" * 500, "a " + "b" * 300 + " c"):
        broken = text(layout.lines(long))
        assert max(map(len, broken)) <= WIDTH
        assert "".join(broken) == long
    assert all(line.endswith("word ") for line in text(layout.lines("word " * 100)))
    assert text(layout.lines("a\n\nb")) == ["a", "", "b"]


def test_many_passages() -> None:
    """Of many, the first and the last are shown, and of all texts together so much."""
    lines = text(layout.passages([Passage(f"number {k}", "t" * MAX_TEXT) for k in range(1000)]))
    headings = [line for line in lines if line.startswith("──")]
    assert len(headings) == MAX_PASSAGES + 1
    assert headings[0].startswith("── number 0 ") and headings[-1].startswith("── number 999 ")
    assert sum("900 more are not shown" in line for line in headings) == 1
    assert sum(map(len, lines)) < MAX_SHOWN + MAX_PASSAGES * 400


def test_table() -> None:
    """What is in an object has the object's name before its own; text is in quotes."""
    rows = text(layout.table({"stop": " a\n", "sampling_params": {"n": 2}, "x": {}, "l": [1, "b"]}))
    assert rows == [
        'stop               " a\\n"', "sampling_params.n  2", "x                  {}",
        'l                  [1,"b"]',
    ]  # fmt: skip
    assert text(layout.table({str(k): k for k in range(MAX_PASSAGES + 5)}))[-1].startswith("5 more")
