"""How people see calls of `/v1/chat/completions`: messages, and the tools that may be called.

Pure. A body may be anything that is JSON.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import Passage, listed, members, shortened, written
from sglang_cached_addon.dialects.openai.display import Reader


class ChatDisplay:
    """The `Display` of chats."""

    spoken = ("messages", "tools")
    reader = Reader

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        found = [_message(message) for message in listed(body.get("messages"))]
        tools = listed(body.get("tools"))
        if tools:
            found.append(Passage(f"tools ({len(tools)})", "\n".join(map(_tool, tools))))
        return found


def _message(message: Any) -> Passage:
    said = members(message)
    if not said:
        return Passage("message", written(message))
    parts = [_content(said.get("content"))]
    if thought := said.get("reasoning_content"):
        parts.insert(0, f"(reasoning)\n{written(thought)}\n")
    for call in map(members, listed(said.get("tool_calls"))):
        function = members(call.get("function"))
        arguments = written(function.get("arguments", ""))
        parts.append(f"(tool call) {written(function.get('name', ''))}({arguments})")
    facts = [written(said[name]) for name in ("name", "tool_call_id") if said.get(name)]
    text = "\n".join(part for part in parts if part)
    return Passage(written(said.get("role", "message")), text, tuple(facts))


def _content(content: Any) -> str:
    """What a message says: its text, or the parts that it consists of."""
    if not isinstance(content, list):
        return "" if content is None else written(content)
    return "\n".join(map(_part, content))


def _part(part: Any) -> str:
    told = members(part)
    if isinstance(told.get("text"), str):
        return str(told["text"])
    return shortened(f"({written(told.get('type', 'part'))}) {written(part)}")


def _tool(tool: Any) -> str:
    function = members(members(tool).get("function"))
    if not function:
        return shortened(written(tool))
    arguments = members(members(function.get("parameters")).get("properties"))
    said = f"{written(function.get('name', ''))}({', '.join(arguments)})"
    described = function.get("description")
    return shortened(f"{said}: {written(described)}" if described else said)
