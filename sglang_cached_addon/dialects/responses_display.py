"""How people see calls of `/v1/responses`, and the items that answer them.

Pure. A body may be anything that is JSON. What a stream has said so far is seen by its deltas,
until the last event tells all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sglang_cached_addon.dialects.display import (
    GAP,
    AnswerReader,
    Passage,
    Shown,
    listed,
    members,
    parted,
    shortened,
    told,
    written,
)

_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_STEMS = {"response.output_text": "message", "response.refusal": "message",
          "response.reasoning_text": "reasoning",
          "response.reasoning_summary_text": "reasoning"}  # fmt: skip
"""By what names of events begin with, the type of the item that a delta is of."""


class ResponsesDisplay:
    """The `Display` of conversations."""

    spoken = ("instructions", "input", "tools")

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        said, tools = body.get("input"), listed(body.get("tools"))
        found = []
        if body.get("instructions"):
            found.append(Passage("instructions", written(body["instructions"])))
        found += map(
            _passage, said if isinstance(said, list) else [{"role": "user", "content": said}]
        )
        if tools:
            found.append(Passage(f"tools ({len(tools)})", "\n".join(map(_tool, tools))))
        return found

    def reader(self) -> AnswerReader:
        return Reader()


class Reader:
    """An `AnswerReader` of one answer."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] = {}
        self._items: dict[str, dict[str, Any]] = {}
        self._pieces: defaultdict[str, list[str]] = defaultdict(list)
        """What has come of each item in deltas."""
        self._last = ""

    def add(self, event: Any) -> None:
        value = members(event)
        self._answer.update(members(value.get("response")) or ({} if "type" in value else value))
        stem, _, step = written(value.get("type", "")).rpartition(".")
        self._last = written(value.get("output_index", ""))
        if "item" in value:
            self._items[self._last] = members(value["item"])
        elif step == "delta":
            self._items.setdefault(self._last, {"type": _STEMS.get(stem, stem)})
            self._pieces[self._last].append(written(value.get("delta", "")))

    def skip(self) -> None:
        if self._pieces:
            self._pieces[self._last].append(GAP)

    def facts(self) -> list[str]:
        named = {name: self._answer.get(name) for name in ("model", "id")}
        usage = members(self._answer.get("usage"))
        return told({**named, "prompt tokens:": usage.get("input_tokens")})

    def samples(self) -> list[Shown]:
        if not (self._answer or self._items):
            return []
        texts = list(map(_text, map(members, listed(self._answer.get("output")))))
        if not texts:
            texts = [_text(item, "".join(self._pieces[at])) for at, item in self._items.items()]
        status = self._answer.get("status")
        reason = members(self._answer.get("incomplete_details")).get("reason")
        facts = [written(reason or status) if status not in (None, "in_progress") else "unfinished"]
        tokens = members(self._answer.get("usage")).get("output_tokens")
        facts += [] if tokens is None else [f"{written(tokens)} tokens"]
        thought, said = (
            "".join(t for kind, t in texts if kind == k) for k in ("reasoning", "message")
        )
        others = [text for kind, text in texts if kind not in ("reasoning", "message")]
        return [Shown(0, parted(thought, said, others), tuple(facts))]


def _text(item: dict[str, Any], said: str = "") -> tuple[str, str]:
    """The type of an item, and its text, which is what was `said` while it comes."""
    kind = written(item.get("type", "message"))
    if kind in _CALLS:
        return kind, f"{written(item.get('name', ''))}({written(item.get(_CALLS[kind]) or said)})"
    if kind in ("message", "reasoning"):
        return kind, _content(item.get("content")) or _content(item.get("summary")) or said
    return kind, shortened(f"({kind}) {written(item)}")


def _passage(item: Any) -> Passage:
    """An item of what is said to the model."""
    said = members(item)
    kind = written(said.get("type", "message" if said else "item"))
    if kind == "message":
        return Passage(written(said.get("role", "message")), _content(said.get("content")))
    if kind.endswith("_output"):
        return Passage("tool result", _content(said.get("output")))
    if kind in _CALLS or kind == "reasoning":
        return Passage("tool call" if kind in _CALLS else kind, _text(said)[1])
    return Passage(kind, shortened(written(item)))


def _content(content: Any) -> str:
    """What an item says: its text, or the parts that it consists of."""
    if not isinstance(content, list):
        return "" if content is None else written(content)
    return "".join(map(_part, content))


def _part(part: Any) -> str:
    said = members(part)
    text = said.get("text", said.get("refusal"))
    return text if isinstance(text, str) else shortened(written(part))


def _tool(tool: Any) -> str:
    said = members(tool)
    if not said.get("name"):
        return shortened(written(tool))
    arguments = members(members(said.get("parameters")).get("properties"))
    line = f"{written(said['name'])}({', '.join(arguments)})"
    described = said.get("description")
    return shortened(f"{line}: {written(described)}" if described else line)
