"""How people see calls of `/generate`."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import GAP, Passage, Shown
from sglang_cached_addon.dialects.generate_display import GenerateDisplay
from tests.tables import each


def native(text: str, tokens: int, finish: Any = None, **more: Any) -> dict[str, Any]:
    """An answer or an event; `ids` is how many token ids it has, by default all so far."""
    count = more.pop("ids", tokens)
    meta = {"id": "r", "prompt_tokens": 3, "completion_tokens": tokens, "finish_reason": finish}
    return {"text": text, "output_ids": [*range(count)], "meta_info": meta, **more}


LENGTH = {"type": "length", "length": 4}
CUMULATIVE = [native("a", 1), native("ab", 2), native("abcd", 4, LENGTH)]
NEWS = [native("a", 1), native("b", 2, ids=1), native("cd", 4, LENGTH, ids=2)]
WHOLE = Shown(0, "abcd", ("length", "4 tokens"))


@each(
    ("events", "shown"),
    [
        ([native("abcd", 4, LENGTH)], [WHOLE]),
        (CUMULATIVE, [WHOLE]),
        (NEWS, [WHOLE]),
        (CUMULATIVE[:2], [Shown(0, "ab", ("unfinished", "2 tokens"))]),
        ([[native("x", 1, LENGTH), native("y", 1, {"type": "stop"})]],
         [Shown(0, "x", ("length", "1 tokens")), Shown(1, "y", ("stop", "1 tokens"))]),
        ([native("y", 1, index=1), native("x", 1, index=0), native("xx", 2, index=0)],
         [Shown(0, "xx", ("unfinished", "2 tokens")), Shown(1, "y", ("unfinished", "1 tokens"))]),
        ([{"output_ids": [7, 8], "meta_info": {}}],
         [Shown(0, "(token ids) [7,8]", ("unfinished",))]),
        (["odd", None, 3, []], []),
    ],
)  # fmt: skip
def test_samples(events: list[Any], shown: list[Shown]) -> None:
    """JSON, events with all so far and events with what is new come to the same samples."""
    reader = GenerateDisplay().reader()
    for event in events:
        reader.add(event)
    assert reader.samples() == shown


@each(
    ("before", "after", "text"),
    [
        (CUMULATIVE[:2], CUMULATIVE[2:], "abcd"),
        (NEWS[:2], [native("cd", 9, LENGTH, ids=2)], f"ab{GAP}cd"),
    ],
)
def test_gap(before: list[Any], after: list[Any], text: str) -> None:
    """A gap is shown only where text is missing."""
    reader = GenerateDisplay().reader()
    for event in before:
        reader.add(event)
    reader.skip()
    for event in after:
        reader.add(event)
    assert [sample.text for sample in reader.samples()] == [text]
    assert reader.facts() == ["id r", "prompt tokens: 3"]


def test_passages() -> None:
    """Each prompt is a passage, whichever field it is in."""
    display = GenerateDisplay()
    assert display.passages({"text": "a"}) == [Passage("prompt", "a")]
    assert display.passages({"input_ids": [4, 5]}) == [Passage("prompt", "[4,5]", ("2 token ids",))]
    assert display.passages({}) == []
