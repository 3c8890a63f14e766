"""Events of streams of `/v1/responses`."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.dialects.responses_events import NAMES, has_text, known, place
from tests.tables import each

PART = {"type": "output_text", "text": "ab"}
SUMMARY = {"type": "summary_text", "text": "s"}
THOUGHT = {"id": "rs", "type": "reasoning", "content": [{"text": "t"}], "summary": [SUMMARY]}
ITEM = {"id": "msg", "type": "message", "content": [{"refusal": "r"}, PART]}
CALL = {"id": "fc", "type": "function_call", "arguments": "{}"}
CUSTOM = {"id": "ctc", "type": "custom_tool_call", "input": "x"}
ANSWER = {"output": [THOUGHT, ITEM, CALL, CUSTOM, {"type": "surprise"}]}
BEGUN = {"output": []}


@each(
    ("kind", "members", "wanted"),
    [
        ("created", {}, {"response": BEGUN}), ("queued", {}, {"response": BEGUN}),
        ("completed", {}, {"response": ANSWER}), ("incomplete", {}, {"response": ANSWER}),
        ("output_item.added", {"output_index": 1}, {"item_id": "msg"}),
        ("output_item.done", {"output_index": 1}, {"item_id": "msg", "item": ITEM}),
        ("output_item.done", {"output_index": 4}, {"item_id": None, "item": {"type": "surprise"}}),
        ("content_part.added", {"output_index": 1, "content_index": 1}, {"item_id": "msg"}),
        ("content_part.done", {"output_index": 1, "content_index": 1},
         {"item_id": "msg", "part": PART}),
        ("output_text.delta", {"output_index": 1, "content_index": 1},
         {"item_id": "msg", "delta": "ab"}),
        ("output_text.done", {"output_index": 1, "content_index": 1},
         {"item_id": "msg", "text": "ab"}),
        ("refusal.done", {"output_index": 1, "content_index": 0},
         {"item_id": "msg", "refusal": "r"}),
        ("reasoning_text.delta", {"output_index": 0, "content_index": 0},
         {"item_id": "rs", "delta": "t"}),
        ("reasoning_summary_part.done", {"output_index": 0, "summary_index": 0},
         {"item_id": "rs", "part": SUMMARY}),
        ("reasoning_summary_text.done", {"output_index": 0, "summary_index": 0},
         {"item_id": "rs", "text": "s"}),
        ("function_call_arguments.done", {"output_index": 2}, {"item_id": "fc", "arguments": "{}"}),
        ("custom_tool_call_input.delta", {"output_index": 3}, {"item_id": "ctc", "delta": "x"}),
        ("output_text.annotation.added", {"output_index": 1}, {"item_id": "msg"}),
    ],
)  # fmt: skip
def test_known(kind: str, members: Any, wanted: Any) -> None:
    """What an event has of the answer follows from its place."""
    event = {"type": f"response.{kind}", **members}
    assert event["type"] in NAMES
    assert known(event, ANSWER, BEGUN) == wanted
    is_text = kind.endswith(("text.done", "arguments.done", "input.done", "refusal.done"))
    assert has_text(event) is is_text


@each("members", [{}, {"output_index": 9}, {"output_index": "x"}, {"output_index": 2},
                  {"output_index": 1}, {"output_index": 1, "content_index": 2}])  # fmt: skip
def test_about_nothing(members: Any) -> None:
    """An event that is about nothing in the answer is told from others."""
    with pytest.raises((LookupError, TypeError)):
        known({"type": "response.output_text.delta", **members}, ANSWER, BEGUN)


def test_place() -> None:
    """A delta and the end of its text have one place, and no other text has it."""
    base = {"type": "response.output_text.delta", "output_index": 1, "content_index": 0}
    assert place(base) == place({**base, "type": "response.output_text.done", "text": "a"})
    others = ({"output_index": 2}, {"content_index": 1}, {"type": "response.refusal.delta"},
              {"summary_index": 0})  # fmt: skip
    assert len({place(base), *(place({**base, **other}) for other in others)}) == 5
