"""Families of greedy calls, as both APIs have them."""

from __future__ import annotations

import copy
from math import inf
from typing import Any

import pytest

from sglang_cached_addon.core.families import Ended
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.chat import DIALECT as CHAT
from sglang_cached_addon.dialects.completions import DIALECT as COMPLETIONS
from tests.tables import each

USAGE = {
    "prompt_tokens": 3,
    "total_tokens": 7,
    "completion_tokens": 4,
    "prompt_tokens_details": None,
    "reasoning_tokens": 0,
    "completion_tokens_details": None,
}
SPANS = {"weight_version": "v", "weight_versions": [{"version": "v", "start": 0, "end": 4}]}
SAID: dict[Any, Any] = {
    CHAT: {"message": {"role": "assistant", "content": "a b c d", "reasoning_content": None}},
    COMPLETIONS: {"text": "a b c d"},
}
STEPS: dict[Any, Any] = {
    CHAT: [["c", 1, None, 1], ["c", 2, None, 2], ["c", 2, None, 3], ["c", 2, None, 4]],
    COMPLETIONS: [[1, None, 1], [2, None, 2], [2, None, 3], [2, None, 4]],
}
BODY: dict[Any, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "a"}], "temperature": 0},
    COMPLETIONS: {"prompt": "a", "temperature": 0},
}


def answer(dialect: Any, usage: Any = None, **choice: Any) -> dict[str, Any]:
    end = {"logprobs": None, "finish_reason": "length", "matched_stop": None}
    found = {
        "id": "r",
        "choices": [{"index": 0, **SAID[dialect], **end, **choice}],
        "usage": {**USAGE, **(usage or {})},
        "metadata": SPANS,
    }
    return copy.deepcopy(found)


@each(
    ("dialect", "more", "limit"),
    [
        (CHAT, {}, inf),
        (CHAT, {"max_tokens": 9}, 9),
        (CHAT, {"max_tokens": 9, "max_completion_tokens": 8}, 8),
        (CHAT, {"max_tokens": 9, "max_completion_tokens": None}, 9),
        (CHAT, {"max_tokens": None}, inf),
        (CHAT, {"max_tokens": 9, "stream": True, "user": "u", "tools": [{}], "echo": False}, 9),
        (COMPLETIONS, {}, 16),
        (COMPLETIONS, {"max_tokens": 9, "logprobs": None}, 9),
    ],
)
def test_variants(dialect: Any, more: dict[str, Any], limit: float) -> None:
    """A call's place in its family, from which the call itself can be made again."""
    body = {**BODY[dialect], **more}
    variant = dialect.family.variant(body)
    assert (variant.limit, variant.scores) == (limit, b"")
    assert dialect.family.ask(body, variant.fields) == body
    assert "max_completion_tokens" not in dialect.family.ask(body, {"max_tokens": 7})


@each(
    ("dialect", "more"),
    [
        *((dialect, more) for dialect in BODY for more in (
            {"max_tokens": 0}, {"max_tokens": 1.0}, {"max_tokens": "9"}, {"min_tokens": "x"},
            {"odd": 1}, {"max_thinking_tokens": 0}, {"return_hidden_states": True},
            {"custom_logit_processor": "x"}, {"return_token_ids": True}, {"watermark": {}},
        )),
        (COMPLETIONS, {"echo": True}), (COMPLETIONS, {"suffix": "x"}),
        (COMPLETIONS, {"max_completion_tokens": 9}),
        (CHAT, {"max_completion_tokens": 0, "max_tokens": 9}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (CHAT, {"input_ids": [1]}),
    ],
)  # fmt: skip
def test_no_variant(dialect: Any, more: dict[str, Any]) -> None:
    """Fields that the answer may depend on in another way than the tokens, or that upstream may
    refuse, belong to no family."""
    assert dialect.family.variant({**BODY[dialect], **more}) is None


@each("dialect", BODY)
def test_ended(dialect: Any) -> None:
    rows: list[tuple[Any, Ended | None]] = [
        (answer(dialect), Ended(4, 3, False)),
        (answer(dialect, finish_reason="stop"), Ended(4, 3, True)),
        (answer(dialect, finish_reason="tool_calls"), None),
        (answer(dialect, {"completion_tokens": None}), None),
        ({**answer(dialect), "usage": None}, None),
    ]
    for found, ended in rows:
        assert dialect.family.ended(found) == ended


@each("dialect", BODY)
def test_text_at(dialect: Any) -> None:
    """A recorded stream tells where tokens end, if its chunks tell how many tokens there were."""
    family, steps = dialect.family, STEPS[dialect]
    late = {"late": [], "usage": []}
    assert family.text(answer(dialect)) == "a b c d"
    assert family.text_at(answer(dialect), [*steps, late], 2) == "a b"
    assert family.text_at(answer(dialect), [1, 2, 2, 2], 2) is None
    assert family.text_at(answer(dialect), [*steps[:1], *steps[2:]], 2) is None
    assert family.text_at(answer(dialect), None, 2) is None
    assert family.text_at(answer(dialect, matched_stop="d"), steps, 2) is None
    assert family.spelling(BODY[dialect], answer(dialect), 2) is None


@each("dialect", BODY)
def test_cut(dialect: Any) -> None:
    """All that is told by the token is cut, and what tells the end is that of the limit."""
    found = answer(dialect, finish_reason="stop", matched_stop=2)
    late = {"late": ["x"], "usage": []}
    steps = dialect.family.cut(found, [*STEPS[dialect], late], 2, "a b")
    assert steps == [*STEPS[dialect][:2], late]
    expected = answer(dialect, {"completion_tokens": 2, "total_tokens": 5})
    (choice,) = expected["choices"]
    choice.get("message", choice)["text" if "text" in choice else "content"] = "a b"
    expected["metadata"]["weight_versions"][0]["end"] = 2
    assert found == expected
    # A stream that is not known to the last character is sent in one chunk.
    assert dialect.family.cut(answer(dialect), [1, *STEPS[dialect][1:]], 2, "a b") is None
    assert dialect.family.cut(answer(dialect), None, 2, "a b") is None


@each(
    ("dialect", "odd"),
    [
        *((dialect, odd) for dialect in BODY for odd in (
            {"usage": {"reasoning_tokens": 1}}, {"hidden_states": [1]}, {"logprobs": {"content": []
            , "tokens": [1]}},
        )),
        (CHAT, {"message": {"role": "assistant", "content": "", "reasoning_content": "x"}}),
        (CHAT, {"message": {"role": "assistant", "content": "", "tool_calls": [1]}}),
    ],
)  # fmt: skip
def test_not_cut(dialect: Any, odd: dict[str, Any]) -> None:
    """What nobody knows how to cut is not cut."""
    with pytest.raises(Refused):
        dialect.family.cut(answer(dialect, **odd), None, 2, "a b")
