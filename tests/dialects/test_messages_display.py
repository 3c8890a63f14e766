"""How people see calls of `/v1/messages`."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.dialects import installed, rendering
from sglang_cached_addon.dialects.display import Passage
from sglang_cached_addon.dialects.messages_display import MessagesDisplay
from tests.conftest import corpus
from tests.tables import each

MESSAGES = installed()["POST", "/v1/messages"]


@each(
    ("message", "passage"),
    [
        ({"role": "user", "content": "Hi"}, Passage("user", "Hi")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
         Passage("user", "a\nb")),
        ({"role": "assistant", "content": [
            {"type": "thinking", "thinking": "2+2"}, {"type": "text", "text": "4"},
            {"type": "tool_use", "name": "add", "input": {"a": 1}},
        ]}, Passage("assistant", '(reasoning)\n2+2\n\n4\n(tool call) add({"a":1})')),
        ({"role": "user", "content": [
            {"type": "tool_result", "content": [{"type": "text", "text": "3"}]}, 7,
        ]}, Passage("user", "(tool result) 3\n(block) 7")),
        ("odd", Passage("message", "odd")),
    ],
)  # fmt: skip
def test_messages(message: Any, passage: Passage) -> None:
    """A message shows who says what, what was thought, and which tools are called."""
    assert MessagesDisplay().passages({"messages": [message]}) == [passage]


def test_besides() -> None:
    """What the model is told besides, and the tools that it may call, are shown."""
    schema = {"properties": {"a": {}, "b": {}}}
    tools = [{"name": "add", "description": "Adds.", "input_schema": schema}, 1]
    body = {"system": [{"type": "text", "text": "Be kind."}], "tools": tools}
    assert MessagesDisplay().passages(body) == [
        Passage("system", "Be kind."), Passage("tools (2)", "add(a, b): Adds.\n1"),
    ]  # fmt: skip


RECORDED = {
    pair["name"]: pair["response"]["body"].encode()
    for pair in corpus("messages-")
    if pair["response"]["status"] == 200 and "event: error" not in pair["response"]["body"]
}


def lines(name: str, end: int | None = None) -> list[str]:
    data = RECORDED[name][:end]
    shown = rendering.answer(MESSAGES, data, [], asked=b"{}", is_stream="stream" in name)
    return [text for _, text in shown]


def test_recorded() -> None:
    """Of real answers, what was said, thought and called is shown, and how each has ended."""
    seen = 0
    for name, data in RECORDED.items():
        found = "".join(lines(name))
        assert "unfinished" not in found and "no end" not in found, name
        if "stream" in name:
            continue
        answer = orjson.loads(data)
        assert f"· {answer['stop_reason']} · {answer['usage']['output_tokens']} tokens" in found
        for block in answer["content"]:
            said = block.get("text", block.get("thinking", block.get("name")))
            assert "".join(said.splitlines()) in found, name
            seen += 1
    assert seen > 8


def test_streams() -> None:
    """The pieces of a stream are put together, block by block; one that is cut is said to be."""
    said = lines("messages-tools-stream")
    assert any(line.startswith("weather({") for line in said)
    cut = lines("messages-tools-stream", -200)
    assert any("no end" in line for line in cut) and any("unfinished" in line for line in cut)
