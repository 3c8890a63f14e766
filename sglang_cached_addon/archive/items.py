"""Items of `/v1/responses` as the messages of chats.

Pure. Items that are one turn of the assistant, as a text and the calls that follow it, are one
message. What was thought is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_OF_FUNCTION = ("name", "description", "parameters", "strict")


def chat(call: Json) -> Json:
    """What a call asks, as a chat asks it."""
    said = call["input"]
    items = said if isinstance(said, list) else [{"role": "user", "content": said}]
    told = [{"role": "system", "content": call["instructions"]}] if call.get("instructions") else []
    tools = [_tool(tool) for tool in call.get("tools") or () if isinstance(tool, dict)]
    return {**call, "messages": [*told, *messages(items)], "tools": tools or None}


def messages(items: Iterable[Any]) -> list[Json]:
    """The messages that items are."""
    found: list[Json] = []
    for item in items:
        message = _message(item) if isinstance(item, dict) else None
        if message and found and found[-1]["role"] == message["role"] == "assistant":
            before = found[-1]
            calls = [*before.get("tool_calls", ()), *message.get("tool_calls", ())]
            texts = [each["content"] for each in (before, message) if each.get("content")]
            found[-1] = {"role": "assistant", **({"content": "".join(texts)} if texts else {})}
            found[-1] |= {"tool_calls": calls} if calls else {}
        elif message:
            found.append(message)
    return found


def _message(item: Json) -> Json | None:
    kind = item.get("type", "message")
    if kind == "message":
        return {"role": item.get("role", "user"), "content": _text(item.get("content"))}
    if kind in _CALLS:
        function = {"name": item.get("name"), "arguments": item.get(_CALLS[kind])}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "tool_calls": [call]}
    if kind in ("function_call_output", "custom_tool_call_output"):
        said = _text(item.get("output"))
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": said}
    return None


def _text(content: Any) -> Any:
    """A content as one text, if it is that; else as it is."""
    if not isinstance(content, list):
        return content
    texts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
    is_text = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if is_text else content


def _tool(tool: Json) -> Json:
    named = {name: tool[name] for name in _OF_FUNCTION if tool.get(name) is not None}
    return {"type": "function", "function": named}
