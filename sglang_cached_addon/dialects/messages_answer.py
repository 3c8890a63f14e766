"""Answers of `/v1/messages`: what is a sample, and how its stream begins and ends.

Pure. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.call import Generation, Split
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.base import Json

TEXTS = {"text": "text", "thinking": "thinking"}
"""By type of block, the member that comes in pieces."""

_OF_THE_END = ("stop_reason", "stop_sequence")
"""The members of an answer that are told when it ends."""


def split(answer: Any, deltas: bytes = b"") -> Split:
    """The sample that an answer is. Raises `Refused`."""
    if not isinstance(answer, dict) or judging.is_error(answer):
        raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
    content, usage = answer.get("content"), answer.get("usage")
    if answer.get("type") != "message" or not isinstance(content, list):
        raise Refused(Reason.UNREADABLE)
    if not all(isinstance(block, dict) and type(block.get("type")) is str for block in content):
        raise Refused(Reason.UNREADABLE)
    if any(type(block.get(TEXTS.get(block["type"], "type"))) is not str for block in content):
        raise Refused(Reason.UNREADABLE)
    tokens = usage.get("output_tokens") if isinstance(usage, dict) else None
    sample = Generation(0, judging.dump(answer), tokens if type(tokens) is int else 0, deltas)
    return Split((sample,), judging.finish_refusal(answer.get("stop_reason")))


def begins(answer: Json) -> Json:
    """The message of an answer as it begins."""
    message = {name: value for name, value in answer.items() if name not in _OF_THE_END}
    if "stop_sequence" in answer:  # a server that says null where there is nothing
        message = {name: message.get(name) for name in answer}
    if isinstance(usage := message.get("usage"), dict):
        message["usage"] = {**usage, "output_tokens": 0}
    return {**message, "content": []}


def ends(answer: Json) -> Json:
    """The data of the event that tells why an answer ended, and what it took."""
    delta = {name: answer[name] for name in _OF_THE_END if name in answer}
    usage = answer.get("usage")
    tokens = usage.get("output_tokens", 0) if isinstance(usage, dict) else 0
    return {"type": "message_delta", "delta": delta, "usage": {"output_tokens": tokens}}


def begun(kind: str, block: Json | None) -> Json:
    """A block as it begins; of text and thinking, none is known as it will be."""
    if kind in TEXTS or block is None:
        return {"type": kind, TEXTS[kind]: ""}
    return {**block, "input": {}} if kind == "tool_use" else block


def is_same(one: Json, other: Json) -> bool:
    """Whether two objects are written alike."""
    return judging.dump(one) == judging.dump(other)
