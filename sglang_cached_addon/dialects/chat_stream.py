"""Streams of `/v1/chat/completions`: chunks to samples.

A choice begins with its role; then comes what it says, thinks and calls, as it is generated;
when all have ended, each one's finish. A sample's `deltas` is a list of steps, one a chunk
between role and finish: a number of characters of the content, or `[kind, value, rows,
tokens]`, of which those at the end may be missing. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import NULL
from sglang_cached_addon.dialects.openai.recording import CHOICE, refuse_unknown


class Step(StrEnum):
    """What a chunk adds."""

    CONTENT = "c"
    """So many characters of content."""
    PARSED = "p"
    """The same, from a parser of tool calls; SGLang writes these chunks in another way."""
    REASONING = "r"
    """So many characters of reasoning."""
    TOOL_CALLS = "t"
    """This value of `tool_calls`."""
    NOTHING = "l"
    """Only log-probabilities."""
    OTHER = "x"
    """These members of the message, which SGLang does not have."""
    MATCHED = "m"
    """No chunk of its own, but the `matched_stop` of the finish, where JSON leaves it out."""


KNOWN_DELTA = frozenset(("role", "content", "reasoning_content", "tool_calls"))
_FUNCTION = ("name", "arguments")
_KNOWN_CHOICE = frozenset((*CHOICE, "delta"))


class ChoiceRecorder:
    """Puts the chunks of one choice together."""

    def __init__(self) -> None:
        self.is_finished = False
        self.is_text = False
        self.rows = 0
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._has_reasoning = False
        self._calls: dict[int, dict[str, Any]] = {}
        self._logprobs: list[Any] | None = None
        self._steps: list[Any] = []
        self._matched: list[Any] = []
        self._end: dict[str, Any] = {}

    def add(self, choice: dict[str, Any], tokens: int | None) -> bool:
        delta = choice.get("delta")
        if not isinstance(delta, dict) or self.is_finished:
            raise Refused(Reason.UNREADABLE)
        refuse_unknown(delta, KNOWN_DELTA, is_end=False)
        rows = self._take_rows(choice.get("logprobs"))
        before = len(self._steps)
        is_end = choice.get("finish_reason") is not None
        refuse_unknown(choice, _KNOWN_CHOICE, is_end=is_end)
        self._take(delta, is_end, rows, tokens)
        if is_end:
            self._finish(choice)
        self.is_text = not is_end and [type(step) for step in self._steps[before:]] == [int]
        return self.is_finished and len(self._steps) == before

    def say(self, text: str) -> None:
        self._content.append(text)
        self._steps.append(len(text))

    def text(self, choice: Any) -> Any:
        return choice["delta"]["content"]

    def _take(
        self, delta: dict[str, Any], is_end: bool, rows: int | None, tokens: int | None
    ) -> None:
        content, reasoning = delta.get("content"), delta.get("reasoning_content")
        calls, role = delta.get("tool_calls"), delta.get("role")
        for text in (content, reasoning, role):
            if text is not None and type(text) is not str:
                raise Refused(Reason.UNREADABLE)
        # An empty text is no delta with a role or at the end.
        is_bare = role is None and not is_end
        self._has_reasoning = self._has_reasoning or reasoning is not None
        if reasoning or (reasoning == "" and content is None and is_bare):
            self._reasoning.append(reasoning)
            self._steps.append(_step(Step.REASONING, len(reasoning), rows, tokens))
            rows = None
        if calls:
            self._call(calls)
            self._steps.append(_step(Step.TOOL_CALLS, calls, rows, tokens))
            rows = None
        if content or (content == "" and is_bare):
            self._content.append(content)
            kind = Step.PARSED if "role" in delta and role is None else Step.CONTENT
            self._steps.append(_step(kind, len(content), rows, tokens))
            rows = None
        if rows is not None:
            self._steps.append(_step(Step.NOTHING, None, rows, tokens))

    def _take_rows(self, logprobs: Any) -> int | None:
        if logprobs is None:
            return None
        rows = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(rows, list):
            raise Refused(Reason.UNREADABLE)
        self._logprobs = [] if self._logprobs is None else self._logprobs
        self._logprobs += rows
        self.rows += len(rows)
        return len(rows)

    def _call(self, calls: Any) -> None:
        for call in calls if isinstance(calls, list) else [None]:
            if not isinstance(call, dict) or type(call.get("index")) is not int:
                raise Refused(Reason.UNREADABLE)
            function = call.get("function")
            if not isinstance(function, dict) or call.get("type") not in (None, "function"):
                raise Refused(Reason.UNREADABLE)
            said = {"id": call.get("id"), **{name: function.get(name) for name in _FUNCTION}}
            if any(type(text) not in (str, NULL) for text in said.values()):
                raise Refused(Reason.UNREADABLE)
            begun = self._calls.setdefault(call["index"], dict.fromkeys(said))
            begun["id"] = begun["id"] or said["id"]
            begun["name"] = begun["name"] or said["name"]
            begun["arguments"] = (begun["arguments"] or "") + (said["arguments"] or "")

    def _finish(self, choice: dict[str, Any]) -> None:
        self.is_finished = True
        left_out = ("index", "delta", "message")
        self._end = {name: v for name, v in choice.items() if name not in left_out}
        if self._end["finish_reason"] == "tool_calls" and self._end.get("matched_stop") is not None:
            # JSON has null here.
            self._matched = [[Step.MATCHED, self._end["matched_stop"]]]
            self._end["matched_stop"] = None

    def choice(self) -> dict[str, Any]:
        reasoning = "".join(self._reasoning) if self._has_reasoning else None
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._content),
            "reasoning_content": reasoning,
        }
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "index": index,
                    "type": "function",
                    "function": {name: call[name] for name in _FUNCTION},
                }
                for index, call in sorted(self._calls.items())
            ]
        logprobs = None if self._logprobs is None else {"content": self._logprobs}
        return {"index": 0, "message": message, **self._end, "logprobs": logprobs}

    def steps(self) -> list[Any]:
        return self._steps + self._matched


def _step(kind: Step, value: Any, rows: int | None, tokens: int | None) -> Any:
    """A step in as few members as it needs."""
    if kind is Step.CONTENT and rows is None and tokens is None:
        return value
    step = [kind, value, rows, tokens]
    while step[-1] is None:
        step.pop()
    return step
