"""How people see calls of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.chat_display import ChatDisplay
from sglang_cached_addon.dialects.display import MAX_VALUE, Passage
from tests.tables import each

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
TOOL = {"name": "add", "description": "Adds.", "parameters": {"properties": {"a": {}, "b": {}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9999}}


@each(
    ("message", "passage"),
    [
        ({"role": "user", "content": "Hi"}, Passage("user", "Hi")),
        ({"role": "system", "content": [{"text": "a"}, {"type": "text", "text": "b"}]},
         Passage("system", "a\nb")),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]},
         Passage("assistant", '(tool call) add({"a":1})')),
        ({"role": "assistant", "content": "4", "reasoning_content": "2+2"},
         Passage("assistant", "(reasoning)\n2+2\n\n4")),
        ({"role": "tool", "tool_call_id": "c1", "content": "3"}, Passage("tool", "3", ("c1",))),
        ({"content": {"odd": 1}}, Passage("message", '{"odd":1}')),
        ("odd", Passage("message", "odd")),
        ({"role": 7, "tool_calls": [1], "content": ["x"]},
         Passage("7", "(part) x\n(tool call) ()")),
    ],
)  # fmt: skip
def test_messages(message: Any, passage: Passage) -> None:
    """A message shows who says what, what was thought, and which tools are called."""
    assert ChatDisplay().passages({"messages": [message]}) == [passage]


def test_images() -> None:
    """Of an image, only the begin and the end of its data are shown."""
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "See"}, IMAGE]}]}
    (shown,) = ChatDisplay().passages(body)
    assert shown.text.startswith("See\n(image_url) ")
    assert len(shown.text) < MAX_VALUE + 100


def test_tools() -> None:
    """Each tool is a line, with its arguments and what it is for."""
    tools = [{"type": "function", "function": TOOL}, {"type": "other"}]
    assert ChatDisplay().passages({"tools": tools}) == [
        Passage("tools (2)", 'add(a, b): Adds.\n{"type":"other"}')
    ]
    assert ChatDisplay().passages({"messages": "odd", "tools": {}}) == []
