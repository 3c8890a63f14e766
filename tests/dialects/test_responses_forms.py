"""SGLang's own events of answers."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.responses_forms import forms

Json = dict[str, Any]


def kinds(found: list[Any]) -> list[Any]:
    return [f["type"].removeprefix("response.") if isinstance(f, dict) else f for f in found]


def test_pieces() -> None:
    """Texts are cut as it is said, one after the other; without that each is one delta, and one
    that is empty has none."""
    part = {"annotations": [], "text": "abc", "type": "output_text", "logprobs": None}
    item = {"id": "m", "content": [part], "role": "assistant", "status": "completed",
            "type": "message"}  # fmt: skip
    calls = [{"arguments": said, "name": "f", "type": "function_call", "id": "c"}
             for said in ("", "{}")]  # fmt: skip
    answer = {"status": "completed", "output": [item, *calls]}
    ends = ["output_text.done", "content_part.done", "output_item.done"]
    begins = ["created", "in_progress", "output_item.added", "content_part.added"]
    empty = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    called = ["output_item.added", "function_call_arguments.delta"]
    rest = [*ends, *empty, *called]
    last = ["function_call_arguments.done", "output_item.done", "completed"]
    found = list(forms(answer))
    assert kinds(found) == [*begins, "output_text.delta", *rest, *last]
    assert [f["delta"] for f in found if "delta" in f] == [3, 2]
    cut = list(forms(answer, [[1, 1, 1], [], [1, 1]]))
    assert kinds(cut) == [*begins, "output_text.delta", 1, 1, *rest, 1, *last]
    assert all(list(f)[-1] == "type" for f in cut[2:-1] if isinstance(f, dict))
    assert cut[3]["part"] == {**part, "text": ""}
    assert cut[2]["item"] == {**item, "content": [], "status": "in_progress"}


def test_other_items() -> None:
    """An item of another kind comes in one go, and a refusal as a text does."""
    refused = {"type": "refusal", "refusal": "no"}
    answer = {"status": "incomplete", "output": [
        {"type": "surprise", "x": 1}, {"type": "message", "content": [refused]},
        {"type": "reasoning", "summary": [], "content": None},
    ]}  # fmt: skip
    found = list(forms(answer))
    assert kinds(found) == [
        "created", "in_progress", "output_item.added", "output_item.done", "output_item.added",
        "content_part.added", "refusal.delta", "refusal.done", "content_part.done",
        "output_item.done", "output_item.added", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert found[5]["part"] == {"type": "refusal", "refusal": ""}
