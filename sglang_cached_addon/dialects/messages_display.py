"""How people see calls of `/v1/messages`, and the messages that answer them.

Pure. A body may be anything that is JSON. A JSON answer is a message as its stream begins, but with
all of its content.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects import listing_display
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

_PIECES = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""By type of delta, the member that has its text."""


class MessagesDisplay:
    """The `Display` of conversations."""

    spoken = ("system", "messages", "tools")

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        found = [Passage("system", _content(body["system"]))] if body.get("system") else []
        for message in listed(body.get("messages")):
            said = members(message)
            text = _content(said.get("content")) if said else written(message)
            found.append(Passage(written(said.get("role", "message")), text))
        if tools := listed(body.get("tools")):
            found.append(Passage(f"tools ({len(tools)})", "\n".join(map(_tool, tools))))
        return found

    def reader(self) -> AnswerReader:
        return Reader()


class CountDisplay(MessagesDisplay):
    """That of counts of their tokens."""

    def reader(self) -> AnswerReader:
        return listing_display.Reader(_count)


def _count(answer: Any) -> listing_display.Rows:
    count = members(answer).get("input_tokens")
    return [] if count is None else [(None, f"{written(count)} tokens")]


class Reader:
    """An `AnswerReader` of one message."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._finish: Any = None
        self._blocks: dict[Any, _Block] = {}
        self._has_come = False

    def add(self, event: Any) -> None:
        value = members(event)
        kind, at = value.get("type"), str(value.get("index"))
        self._has_come |= bool(value)
        if kind == "content_block_start":
            self._blocks[at] = _Block(members(value.get("content_block")))
        elif kind == "content_block_delta":
            delta = members(value.get("delta"))
            piece = delta.get(_PIECES.get(written(delta.get("type")), ""))
            self._blocks.setdefault(at, _Block({})).pieces.append(written(piece or ""))
        else:
            self._take(members(value.get("message")) or value)
            self._finish = members(value.get("delta")).get("stop_reason") or self._finish

    def _take(self, message: dict[str, Any]) -> None:
        for k, block in enumerate(map(members, listed(message.get("content")))):
            self._blocks[str(k)] = _Block(block)
        self._message.update((n, message[n]) for n in ("model", "id") if message.get(n))
        self._usage.update(members(message.get("usage")))
        self._finish = message.get("stop_reason") or self._finish

    def skip(self) -> None:
        if self._blocks:
            list(self._blocks.values())[-1].pieces.append(GAP)

    def facts(self) -> list[str]:
        return told({**self._message, "prompt tokens:": self._usage.get("input_tokens")})

    def samples(self) -> list[Shown]:
        if not self._has_come:
            return []
        blocks = self._blocks.values()
        thought = "".join(block.text("thinking") for block in blocks if block.kind == "thinking")
        said = "".join(block.text("text") for block in blocks if block.kind == "text")
        others = [block.told() for block in blocks if block.kind not in ("thinking", "text")]
        facts = [written(self._finish) if self._finish else "unfinished"]
        if (tokens := self._usage.get("output_tokens")) is not None:
            facts.append(f"{written(tokens)} tokens")
        return [Shown(0, parted(thought, said, others), tuple(facts))]


class _Block:
    """What has come of one block."""

    def __init__(self, first: dict[str, Any]) -> None:
        self.kind = written(first.get("type", "text"))
        self.pieces: list[str] = []
        self._first = first

    def text(self, name: str) -> str:
        return written(self._first.get(name) or "") + "".join(self.pieces)

    def told(self) -> str:
        """A block that is no text of its own: a call of a tool."""
        if self.kind != "tool_use":
            return _block(self._first)
        said = "".join(self.pieces) or written(self._first.get("input", ""))
        return f"{written(self._first.get('name', ''))}({said})"


def _content(content: Any) -> str:
    """What a message says: its text, or the blocks that it consists of."""
    if not isinstance(content, list):
        return "" if content is None else written(content)
    return "\n".join(map(_block, content))


def _block(block: Any) -> str:
    said = members(block)
    kind = written(said.get("type", "block"))
    if isinstance(said.get("text"), str):
        return str(said["text"])
    if isinstance(said.get("thinking"), str):
        return f"(reasoning)\n{said['thinking']}\n"
    if kind == "tool_use":
        return f"(tool call) {written(said.get('name', ''))}({written(said.get('input', ''))})"
    if kind == "tool_result":
        return f"(tool result) {_content(said.get('content'))}"
    return shortened(f"({kind}) {written(block)}")


def _tool(tool: Any) -> str:
    said = members(tool)
    if not said.get("name"):
        return shortened(written(tool))
    arguments = members(members(said.get("input_schema")).get("properties"))
    line = f"{written(said['name'])}({', '.join(arguments)})"
    described = said.get("description")
    return shortened(f"{line}: {written(described)}" if described else line)
