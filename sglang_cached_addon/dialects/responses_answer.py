"""Answers of `/v1/responses`: what is a sample, what of it is its client's own, how it begins.

Pure. Checked against SGLang 0.5.23, which says of an answer that was aborted that it has `failed`.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.call import Generation, Split
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.display import listed

ECHOED = ("user", "metadata", "store", "prompt_cache_key", "safety_identifier")
"""Fields of a call that do not change what is generated, and which its answer repeats. What it
repeats beside these, it was generated for."""

_TOLD = (*ECHOED, "instructions")
"""What its client has said in just these words, also where rules leave something out of the key."""

_WHOLE = ("completed", "incomplete")
_BROKEN = ("failed", "cancelled")
"""The statuses of answers that have ended."""

_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
"""By type of item, the member that has what a client's tool is given."""

_LIVE = frozenset(
    (
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_call",
        "mcp_list_tools",
        "web_search_call",
    )
)
"""The types of items that tell what the server itself did with tools."""

_BEGUN: Json = {
    "output": [],
    "status": "in_progress",
    "usage": None,
    "error": None,
    "incomplete_details": None,
}
"""The members that an answer has while it comes."""


def declared(body: Json) -> list[Any]:
    """The tools that a call declares: its own, and those that stand in its input, as in the
    `additional_tools` of Codex."""
    items = [item for item in listed(body.get("input")) if isinstance(item, dict)]
    return [tool for each in (body, *items) for tool in listed(each.get("tools"))]


def split(answer: Any) -> Split:
    """The sample that an answer is. Raises `Refused`."""
    if not isinstance(answer, dict) or answer.get("object") != "response":
        raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
    output, usage = answer.get("output"), answer.get("usage")
    if not isinstance(output, list) or not all(map(_is_item, output)):
        raise Refused(Reason.UNREADABLE)
    tokens = usage.get("output_tokens") if isinstance(usage, dict) else None
    sample = Generation(0, judging.dump(answer), tokens if type(tokens) is int else 0)
    return Split((sample,), _refusal(answer))


def _is_item(item: Any) -> bool:
    """Whether this is an item of an output, as far as it is understood."""
    if not isinstance(item, dict) or type(item.get("type")) is not str:
        return False
    if item["type"] in _CALLS:
        return type(item.get(_CALLS[item["type"]])) is str
    if item["type"] not in ("message", "reasoning"):
        return True
    parts = (item.get(name) or [] for name in ("content", "summary"))
    return all(isinstance(some, list) and all(map(_is_part, some)) for some in parts)


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and type(part.get("text", part.get("refusal"))) is str


def _refusal(answer: Json) -> Reason | None:
    status = answer.get("status")
    if status in _BROKEN:  # what was aborted tells its usage, and what was refused has none
        return Reason.ABORT if isinstance(answer.get("usage"), dict) else Reason.ERROR
    if status not in _WHOLE:
        return Reason.UNFINISHED
    if judging.is_error(answer):
        return Reason.ERROR
    return Reason.SERVER_TOOLS if any(i["type"] in _LIVE for i in answer["output"]) else None


def begun(answer: Json, body: Json) -> Json:
    """An answer to such a call as it begins. SGLang tells the format of a text that nobody has
    asked for when it knows that there is one."""
    unasked = {} if body.get("text") is not None else {"text": None}
    early = _BEGUN | unasked
    return {name: early.get(name, value) for name, value in answer.items()}


def own(answer: Json, body: Json) -> Json:
    """An answer in which all that is echoed is what this call has given; which of these fields a
    call gives is in its key."""
    return {
        name: body[name] if name in _TOLD and body.get(name) is not None else value
        for name, value in answer.items()
    }
