"""Streams of `/v1/chat/completions`: chunks to samples, and samples to chunks.

A choice begins with its role; then comes what it says, thinks and calls, as it is generated;
when all have ended, each one's finish. A sample's `deltas` is a list of steps, one a chunk
between role and finish: a number of characters of the content, or `[kind, value, rows,
tokens]`, of which those at the end may be missing. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import base
from sglang_cached_addon.dialects.openai_stream import CHOICE, Sequel, member, refuse_unknown

JSON_KIND = "chat.completion"
KIND = "chat.completion.chunk"


class Step(StrEnum):
    """What a chunk adds."""

    CONTENT = "c"
    """Characters."""
    PARSED = "p"
    """Characters that a parser of tool calls let pass, which SGLang words otherwise."""
    REASONING = "r"
    """Characters."""
    TOOL_CALLS = "t"
    """The value of `tool_calls`."""
    NOTHING = "l"
    """Log-probabilities alone."""
    OTHER = "x"
    """Members of the message that SGLang does not have."""
    MATCHED = "m"
    """No chunk: the `matched_stop` of the finish, where JSON leaves it out."""


_KNOWN_DELTA = frozenset(("role", "content", "reasoning_content", "tool_calls"))
_FUNCTION = ("name", "arguments")
_KNOWN_CHOICE = frozenset((*CHOICE, "delta"))


class Tape:
    """The chunks of one choice."""

    def __init__(self) -> None:
        self.is_finished = False
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
        refuse_unknown(delta, _KNOWN_DELTA, is_end=False)
        rows = self._take_rows(choice.get("logprobs"))
        before = len(self._steps)
        is_end = choice.get("finish_reason") is not None
        refuse_unknown(choice, _KNOWN_CHOICE, is_end=is_end)
        self._take(delta, is_end, rows, tokens)
        if is_end:
            self._finish(choice)
        return self.is_finished and len(self._steps) == before

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
            if any(type(text) not in (str, base.NULL) for text in said.values()):
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
    """A step in as few words as it needs."""
    if kind is Step.CONTENT and rows is None and tokens is None:
        return value
    step = [kind, value, rows, tokens]
    while step[-1] is None:
        step.pop()
    return step


def chunks(sequel: Sequel, created: Any) -> tuple[list[bytes], bytes]:
    """The events of a choice, and its finish."""
    writer = _Writer(sequel, created)
    steps = [_Told.of(step) for step in sequel.steps or _whole(sequel.choice)]
    matched = [step.value for step in steps if step.kind is Step.MATCHED]
    said = writer.deltas([step for step in steps if step.kind is not Step.MATCHED])
    return said, writer.finish(matched)


@dataclass(frozen=True, slots=True)
class _Told:
    """A step, read."""

    kind: Step
    value: Any
    rows: int | None
    tokens: int | None

    @classmethod
    def of(cls, step: Any) -> _Told:
        if isinstance(step, int):
            return cls(Step.CONTENT, step, None, None)
        kind, value, rows, tokens = (*step, None, None, None)[:4]
        return cls(Step(kind), value, rows, tokens)

    @property
    def length(self) -> int:
        """Of its text, roughly."""
        return self.value if isinstance(self.value, int) else len(orjson.dumps(self.value))


def _whole(choice: dict[str, Any]) -> list[Any]:
    """The steps of a sample that came as JSON: one for each thing that it says."""
    message, logprobs = member(choice, "message", dict), member(choice, "logprobs", dict)
    steps: list[list[Any]] = []
    if reasoning := member(message, "reasoning_content", str):
        steps.append([Step.REASONING, len(reasoning)])
    if content := member(message, "content", str):
        steps.append([Step.CONTENT, len(content)])
    # Of JSON, only SGLang's calls have numbers.
    calls = enumerate(member(message, "tool_calls", list))
    for k, call in calls:
        numbered = {"index": k, **call} if isinstance(call, dict) else call
        steps.append([Step.TOOL_CALLS, [numbered]])
    others = {n: v for n, v in message.items() if n not in _KNOWN_DELTA and v is not None}
    if others:
        steps.append([Step.OTHER, others])
    if rows := member(logprobs, "content", list):
        if not steps:
            steps.append([Step.NOTHING, None])
        steps[0].append(len(rows))
    return steps


class _Writer:
    """Words the chunks of one choice."""

    def __init__(self, sequel: Sequel, created: Any) -> None:
        self._sequel = sequel
        self._choice = sequel.choice
        message = member(sequel.choice, "message", dict)
        self._content = member(message, "content", str)
        self._reasoning = member(message, "reasoning_content", str)
        self._rows = member(member(sequel.choice, "logprobs", dict), "content", list)
        head = sequel.head(KIND, created)
        self._begin = b'data: %b,"choices":[{"index":%d,"delta":' % (head, sequel.index)

    def deltas(self, steps: list[_Told]) -> list[bytes]:
        begin = self._begin
        said = [begin + _ROLE]
        content = thought = row = 0
        counts = self._counts(steps)
        for k, step in enumerate(steps):
            if step.kind is Step.CONTENT:
                text = self._content[content : content + step.value]
                delta = b'{"reasoning_content":null,"content":%b}' % orjson.dumps(text)
                content += step.value
            elif step.kind is Step.REASONING:
                text = self._reasoning[thought : thought + step.value]
                delta = b'{"reasoning_content":%b}' % orjson.dumps(text)
                thought += step.value
            elif step.kind is Step.PARSED:
                text = self._content[content : content + step.value]
                delta = b'{"role":null,"content":%b,"reasoning_content":null}' % orjson.dumps(text)
                content += step.value
            elif step.kind is Step.TOOL_CALLS:
                delta = _CALLS % orjson.dumps(step.value)
            elif step.kind is Step.OTHER:
                delta = orjson.dumps(step.value)
            else:
                delta = b'{"reasoning_content":null}'
            logprobs = b"null"
            if step.rows is not None:
                logprobs = orjson.dumps({"content": self._rows[row : row + step.rows]})
                row += step.rows
            end = _END
            if counts is not None:
                end = b'],"usage":%b}\n\n' % self._sequel.usage_so_far(counts[k])
            elif step.kind in (Step.PARSED, Step.TOOL_CALLS):
                end = b'],"usage":null}\n\n'
            said.append(begin + delta + b',"logprobs":' + logprobs + _GOES_ON + end)
        return said

    def _counts(self, steps: list[_Told]) -> list[int] | None:
        """Tokens so far at each step, where the client wants them."""
        if not self._sequel.is_counted:
            return None
        lengths = [step.length for step in steps]
        return self._sequel.counts(lengths, [step.tokens for step in steps])

    def finish(self, matched: list[Any]) -> bytes:
        choice = self._choice
        end = {
            "logprobs": None,
            "finish_reason": choice.get("finish_reason"),
            "matched_stop": matched[0] if matched else choice.get("matched_stop"),
            **{n: v for n, v in choice.items() if n not in (*CHOICE, "message")},
        }
        delta = b'{"reasoning_content":null},'
        said = self._begin + delta + orjson.dumps(end)[1:-1] + b"}]"
        return said + self._sequel.tail() + b"}\n\n"


_ROLE = (
    b'{"reasoning_content":null,"role":"assistant","content":""},"logprobs":null,'
    b'"finish_reason":null,"matched_stop":null}]}\n\n'
)
_CALLS = b'{"role":null,"content":null,"reasoning_content":null,"tool_calls":%b}'
_GOES_ON = b',"finish_reason":null,"matched_stop":null}'
_END = b"]}\n\n"
