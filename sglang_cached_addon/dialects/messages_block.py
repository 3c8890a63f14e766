"""One block of a message of `/v1/messages` as it comes: its beginning, then its deltas.

Pure. `messages_stream` has the form in which its deltas are kept.
"""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.frame import Frame
from sglang_cached_addon.dialects.messages_answer import TEXTS

DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
"""By type of block, the type of its deltas, and their member."""


class Block:
    """One block as it comes."""

    def __init__(self, first: Json) -> None:
        self.kind: str = first["type"]
        self.first = first
        self.steps: list[Any] = []
        self.is_open = True
        self._texts: list[str] = []
        self._signature: str | None = None

    def add(self, delta: Any) -> None:
        """Takes a delta. Raises `Refused`."""
        kind = delta.get("type") if isinstance(delta, dict) else None
        if not self.is_open or not isinstance(delta, dict) or len(delta) != 2:
            raise Refused(Reason.UNREADABLE)
        if (self.kind, kind) == ("thinking", "signature_delta") and self._signature is None:
            self._signature = _text(delta, "signature")
            self.steps.append(None)
        elif (self.kind, kind) == ("tool_use", "input_json_delta"):
            self.steps.append(self._say(_text(delta, "partial_json")))
        elif self.kind in DELTAS and kind == DELTAS[self.kind][0]:
            self.say(_text(delta, DELTAS[self.kind][1]))
        else:
            raise Refused(Reason.UNREADABLE)

    def frame(self, said: bytes, index: int) -> Frame | None:
        """The frame of the block's last delta, given as bytes, if that is a text as SGLang writes
        it."""
        if self.kind not in DELTAS:
            return None
        head = b'{"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
        frame = Frame(head % (index, *(name.encode() for name in DELTAS[self.kind])), b"}}")
        return frame if frame.text(said) == self._texts[-1] else None

    def say(self, text: str) -> None:
        """Takes a delta of text that differs from the one before in that alone."""
        self.steps.append(len(self._say(text)))

    def _say(self, text: str) -> str:
        self._texts.append(text)
        return text

    def whole(self) -> Json:
        """The block as JSON has it. Raises `Refused`."""
        said = "".join(self._texts)
        if self.is_open:
            raise Refused(Reason.UNFINISHED)
        if self.kind in TEXTS:
            name = TEXTS[self.kind]
            block = {**self.first, name: _text(self.first, name) + said}
            return block if self._signature is None else {**block, "signature": self._signature}
        if self.kind != "tool_use" or not said:
            return self.first
        return {**self.first, "input": _input(said)}


def _input(said: str) -> Json:
    """The input of a tool. Raises `Refused` for what JSON could not have."""
    try:
        given = orjson.loads(said)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise Refused(Reason.UNREADABLE)
    return given


def _text(holder: Json, name: str) -> str:
    text = holder.get(name)
    if type(text) is not str:
        raise Refused(Reason.UNREADABLE)
    return text
