"""Chats, as data sets for training have them: the messages that were sent, and a sample's answer.

Pure. A prompt that is no chat is the message of a user. What has no text of its own, as a prompt of
token ids, is no chat, and neither is what nothing was generated for, as a vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from sglang_cached_addon.archive import items
from sglang_cached_addon.catalog.entry import Entry
from sglang_cached_addon.dialects.base import generates

_RESPONSES = "openai-responses"
_OF_CALL = ("tools", "parallel_tool_calls")
_OF_ANSWER = ("content", "refusal", "tool_calls", "function_call")
_OF_TOOL_CALL = ("id", "type", "function")
"""Members that data sets have, too; servers add others."""


def chats(entry: Entry) -> Iterator[dict[str, Any]]:
    """A chat for each sample of an entry; none where it has no text, or is of an API that generates
    nothing."""
    if entry.dialect and not generates(entry.dialect):
        return
    call = entry.call or {}
    if entry.api == _RESPONSES and "input" in call:
        call = items.chat(call)
    messages = call.get("messages")
    prompt = call.get("text", call.get("prompt"))
    if not isinstance(messages, list):
        if not isinstance(prompt, str):
            return
        messages = [{"role": "user", "content": prompt}]
    if call.get("system"):
        messages = [{"role": "system", "content": call["system"]}, *messages]
    others = {name: call[name] for name in _OF_CALL if call.get(name) is not None}
    for sample in entry.samples:
        message = _message(orjson.loads(sample.answer))
        if message is None:
            text = entry.said(sample)
            if call.get("echo") and isinstance(prompt, str):
                text = text.removeprefix(prompt)
            message = {"content": text}
        yield {"messages": [*messages, {"role": "assistant", **message}], **others}


def _message(answer: Any) -> dict[str, Any] | None:
    """What an assistant has said, as OpenAI's chats or Anthropic's messages have it; None where it
    is no such answer."""
    if isinstance(answer, dict) and answer.get("object") == "response":
        (said,) = items.messages(answer.get("output") or ())[:1] or [{"content": ""}]
        return {name: said[name] for name in _OF_ANSWER if name in said}
    if isinstance(answer, dict) and answer.get("type") == "message" and "content" in answer:
        return {"content": answer["content"]}
    try:
        message = answer["choices"][0]["message"]
        found = {name: message[name] for name in _OF_ANSWER if message.get(name) is not None}
        if "tool_calls" in found:
            found["tool_calls"] = [
                {name: one[name] for name in _OF_TOOL_CALL if name in one}
                for one in found["tool_calls"]
            ]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return found or {"content": ""}
