"""How people see the answers of OpenAI's APIs."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import GAP, Shown
from sglang_cached_addon.dialects.openai.display import Reader
from tests.tables import each

HEAD = {"id": "r", "model": "m"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def chunk(delta: Any, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def call(index: int, **function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": function}]}


def answer(choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": 0, **choice}], **more}


STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "a"}),
    chunk({"content": "b"}),
    chunk({}, "stop"),
    {**HEAD, "choices": [], "usage": USAGE},
]
MESSAGE = {"role": "assistant", "content": "ab"}
AB = [Shown(0, "ab", ("stop", "2 tokens"))]


@each(
    ("events", "shown"),
    [
        (STREAM, AB),
        ([answer({"message": MESSAGE, "finish_reason": "stop"}, usage=USAGE)], AB),
        ([answer({"text": "a"}), answer({"text": "b", "finish_reason": "stop"}, usage=USAGE)], AB),
        (STREAM[:2], [Shown(0, "a", ("unfinished",))]),
        ([chunk({"content": "y"}, "length", 1), chunk({"content": "x"}, "stop", 0)],
         [Shown(0, "x", ("stop",)), Shown(1, "y", ("length",))]),
        ([chunk({"reasoning_content": "2"}), chunk({"reasoning_content": "+2"}),
          chunk({"content": "4"}, "stop")],
         [Shown(0, "(reasoning)\n2+2\n\n(answer)\n4", ("stop",))]),
        ([chunk(call(0, name="add", arguments="")), chunk(call(0, arguments="{}")),
          chunk(call(1, name="sub", arguments="[]"), "tool_calls")],
         [Shown(0, "(tool calls)\nadd({})\nsub([])", ("tool_calls",))]),
        ([answer({"text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": "stop"})],
         [Shown(0, "a", ("stop", "logprobs of 1 tokens"))]),
        ([None, 3, {"choices": 4}, {"choices": [5]}], [Shown(0, "", ("unfinished",))]),
    ],
)  # fmt: skip
def test_samples(events: list[Any], shown: list[Shown]) -> None:
    """JSON and chunks come to the same samples."""
    reader = Reader()
    for event in events:
        reader.add(event)
    assert reader.samples() == shown


def test_gap_and_facts() -> None:
    """Chunks that are left out are no part of a text that looks whole."""
    reader = Reader()
    reader.add(STREAM[1])
    reader.skip()
    for event in STREAM[2:]:
        reader.add(event)
    assert [sample.text for sample in reader.samples()] == [f"a{GAP}b"]
    assert reader.facts() == ["model m", "id r", "prompt tokens: 3", "completion tokens: 2"]
