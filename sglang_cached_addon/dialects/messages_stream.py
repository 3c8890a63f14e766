"""Streams of `/v1/messages`: events to samples.

A message begins; then its blocks come one after the other, each with its beginning, its deltas and
its end; then why it ended, and what it took. A sample's `deltas` is a list of blocks, each a list
of its type and its deltas: a number of characters of text or thinking, a piece of a tool's input as
it came, or null for the signature. Behind them, in an object, is what does not follow from the
answer: how the message `begins` and `ends`, and how blocks have `begun`, by their numbers.

Checked against SGLang 0.5.23, whose JSON has thinking, text and tools in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_cached_addon.core.call import Part, Split
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.frame import Frame
from sglang_cached_addon.dialects.messages_answer import TEXTS, begins, begun, ends, is_same, split
from sglang_cached_addon.dialects.messages_block import Block

EVENTS = (
    b"message_start",
    b"content_block_start",
    b"content_block_delta",
    b"content_block_stop",
    b"message_delta",
    b"message_stop",
    b"ping",
    b"error",
)
"""The names of events; the data of each has its name as `type`."""

_MEMBERS = {
    "message_start": {"type", "message"},
    "content_block_start": {"type", "index", "content_block"},
    "content_block_delta": {"type", "index", "delta"},
    "content_block_stop": {"type", "index"},
}
"""By name of event, its members, where others would be lost."""


class Recorder:
    """Makes a sample of a stream, as `base.Recorder`."""

    def __init__(self, server: Server) -> None:
        self._is_sglang = server.engine == SGLANG
        self._message: Json = {}
        self._blocks: list[Block] = []
        self._end: Json = {}
        self._is_error = False
        self._frame: Frame | None = None
        """The frame of the event before, if it was a text."""
        self._takes: dict[str, Callable[[Json], None]] = {
            "message_start": self._take_start,
            "content_block_start": self._take_block,
            "content_block_delta": self._take_delta,
            "content_block_stop": self._take_stop,
            "message_delta": self._take_end,
        }

    def repeats(self, said: bytes) -> bool:
        text = self._frame.text(said) if self._frame else ""
        if text:
            self._blocks[-1].say(text)
        return bool(text)

    def add(self, event: Any, said: bytes = b"") -> tuple[Part, int]:
        self._frame = None
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "message_stop":
            return Part.END, 0
        if kind == "error":
            self._is_error = True
            return Part.ERROR, 0
        if kind == "ping":
            return Part.OTHER, 0
        if not isinstance(kind, str) or kind not in self._takes or self._end:
            raise Refused(Reason.UNREADABLE)
        is_first = kind == "message_start"
        if is_first == bool(self._message) or event.keys() != _MEMBERS.get(kind, event.keys()):
            raise Refused(Reason.UNREADABLE)
        self._takes[kind](event)
        if said and kind == "content_block_delta":
            self._frame = self._blocks[-1].frame(said, len(self._blocks) - 1)
        return Part.DELTA, 0

    def _take_start(self, event: Json) -> None:
        message = event.get("message")
        if not isinstance(message, dict) or message.get("content") != []:
            raise Refused(Reason.UNREADABLE)
        self._message = message

    def _take_block(self, event: Json) -> None:
        first = event.get("content_block")
        if not isinstance(first, dict) or type(first.get("type")) is not str:
            raise Refused(Reason.UNREADABLE)
        if event.get("index") != len(self._blocks) or any(block.is_open for block in self._blocks):
            raise Refused(Reason.UNREADABLE)
        self._blocks.append(Block(first))

    def _block_of(self, event: Json) -> Block:
        """The block that an event is about: the last one."""
        if not self._blocks or event.get("index") != len(self._blocks) - 1:
            raise Refused(Reason.UNREADABLE)
        return self._blocks[-1]

    def _take_delta(self, event: Json) -> None:
        self._block_of(event).add(event.get("delta"))

    def _take_stop(self, event: Json) -> None:
        block = self._block_of(event)
        if not block.is_open:
            raise Refused(Reason.UNREADABLE)
        block.is_open = False

    def _take_end(self, event: Json) -> None:
        if not isinstance(event.get("delta"), dict):
            raise Refused(Reason.UNREADABLE)
        self._end = event

    def split(self) -> Split:
        if self._is_error:
            raise Refused(Reason.ERROR)
        if not self._end:
            raise Refused(Reason.UNFINISHED)
        usage, last = self._message.get("usage"), self._end.get("usage")
        if not isinstance(usage, dict) or not isinstance(last, dict) or "output_tokens" not in last:
            raise Refused(Reason.NO_USAGE)
        answer: Json = {}
        for name, value in self._message.items():
            if name == "usage":
                answer |= {n: v for n, v in self._end["delta"].items() if n not in answer}
            answer[name] = self._end["delta"].get(name, value)
        content = [block.whole() for block in self._blocks]
        if self._end["delta"].get("stop_reason") == "max_tokens" and _calls_tools(content):
            raise Refused(Reason.UNREADABLE)  # JSON tells of no tool whose input is cut off
        answer["content"] = _as_sglang(content) if self._is_sglang else content
        answer["usage"] = {**usage, **last}
        return split(answer, judging.dump(self._deltas(answer, content)))

    def _deltas(self, answer: Json, content: list[Json]) -> list[Any]:
        told: Json = {}
        if not is_same(self._message, begins(answer)):
            told["begins"] = self._message
        if not is_same(self._end, ends(answer)):
            told["ends"] = self._end
        pairs = enumerate(zip(self._blocks, content, strict=True))
        odd = {
            str(k): block.first
            for k, (block, whole) in pairs
            if not is_same(block.first, begun(block.kind, whole))
        }
        told |= {"begun": odd} if odd else {}
        blocks = [[block.kind, *block.steps] for block in self._blocks]
        return [*blocks, told] if told else blocks


def _as_sglang(blocks: list[Json]) -> list[Json]:
    """Blocks as SGLang's JSON has them: what it thinks, what it says, which tools it calls."""
    if any("signature" in block for block in blocks):
        return blocks  # it is not SGLang's own
    content = []
    for kind, name in (("thinking", "thinking"), ("text", "text")):
        if text := "".join(block[name] for block in blocks if block["type"] == kind):
            content.append({"type": kind, name: text})
    content += [block for block in blocks if block["type"] not in TEXTS]
    return content or [{"type": "text", "text": ""}]


def _calls_tools(content: list[Json]) -> bool:
    return any(block["type"] == "tool_use" for block in content)
