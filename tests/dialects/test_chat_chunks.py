"""Streams of `/v1/chat/completions`: samples to chunks."""

from __future__ import annotations

import copy
from typing import Any

import orjson

from sglang_cached_addon.dialects.chat import DIALECT
from tests.dialects.streams import parsed, worded
from tests.dialects.test_chat_stream import (
    JSON_ANSWERS,
    ONE,
    ROWS,
    answer,
    record,
    replay,
    role,
)
from tests.tables import each


@each(("whole", "deltas"), JSON_ANSWERS.values(), ids=JSON_ANSWERS)
def test_stream_of_a_json_sample(whole: dict[str, Any], deltas: int) -> None:
    """A sample that came as JSON is streamed in full."""
    call = DIALECT.read(ONE)
    sent = DIALECT.trim(call, [1], lambda: "minted")
    samples = DIALECT.split(call, sent, copy.deepcopy(whole)).generations
    events, (end,) = replay(ONE, samples)
    assert len(events) == 1 + deltas + 1
    assert events[0] == worded(role())
    choice = whole["choices"][0]
    finish = parsed(events[-1])["choices"][0]
    assert finish["finish_reason"] == choice["finish_reason"]
    assert finish["matched_stop"] == choice["matched_stop"]
    scored = [parsed(event)["choices"][0]["logprobs"] for event in events]
    assert [each for each in scored if each] == ([ROWS] if choice["logprobs"] else [])
    (again,) = record(ONE, [parsed(event) for event in [*events, end]])
    assert orjson.loads(again.answer) == {**whole, "metadata": None}
    assert [list(c) for c in orjson.loads(again.answer)["choices"]] == [list(choice)]


def test_messages_of_another_server() -> None:
    """Members of other servers are in the stream of a JSON sample."""
    whole = answer({"content": "a", "refusal": "no", "audio": None})
    call = DIALECT.read(ONE)
    samples = DIALECT.split(call, DIALECT.trim(call, [1], lambda: ""), whole).generations
    deltas = [parsed(event)["choices"][0]["delta"] for event in replay(ONE, samples)[0]]
    assert {"refusal": "no"} in deltas
    assert not any("audio" in delta for delta in deltas)


def test_calls_without_numbers() -> None:
    """Tool calls that JSON does not number, as other servers do not, have numbers in a stream."""
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
             for name in "fg"]  # fmt: skip
    whole = answer({"tool_calls": calls}, finish_reason="tool_calls")
    call = DIALECT.read(ONE)
    samples = DIALECT.split(call, DIALECT.trim(call, [1], lambda: ""), whole).generations
    deltas = [parsed(event)["choices"][0]["delta"] for event in replay(ONE, samples)[0]]
    found = [called for delta in deltas for called in delta.get("tool_calls") or ()]
    assert found == [{"index": k, **called} for k, called in enumerate(calls)]
