"""Items of `/v1/responses` as messages."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.archive.items import chat, messages
from tests.tables import each

TEXT = {"type": "input_text", "text": "a"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
CUSTOM = {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"}
CALLS = [
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
    {"id": "d", "type": "function", "function": {"name": "g", "arguments": "x"}},
]
IMAGE = {"type": "input_image", "image_url": "data:x"}


@each(
    ("items", "wanted"),
    [
        ([{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}]),
        ([{"role": "user", "content": [TEXT, TEXT]}], [{"role": "user", "content": "aa"}]),
        ([{"role": "user", "content": [TEXT, IMAGE]}],
         [{"role": "user", "content": [TEXT, IMAGE]}]),
        ([{"type": "message", "role": "assistant", "content": [TEXT]}, CALL, CUSTOM],
         [{"role": "assistant", "content": "a", "tool_calls": CALLS}]),
        ([CALL, {"type": "function_call_output", "call_id": "c", "output": [TEXT]}],
         [{"role": "assistant", "tool_calls": CALLS[:1]},
          {"role": "tool", "tool_call_id": "c", "content": "a"}]),
        ([{"type": "reasoning", "summary": []}, 1, {"type": "surprise"}], []),
    ],
)  # fmt: skip
def test_messages(items: list[Any], wanted: list[Any]) -> None:
    """Each turn of somebody is a message."""
    assert messages(items) == wanted


def test_chat() -> None:
    """What the model is told besides, and its tools, are as a chat has them."""
    tool = {"type": "function", "name": "f", "parameters": {}, "tools": None}
    found = chat({"input": "a", "instructions": "b", "tools": [tool, 1]})
    assert found["messages"] == [
        {"role": "system", "content": "b"},
        {"role": "user", "content": "a"},
    ]
    assert found["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert chat({"input": "a"})["tools"] is None
