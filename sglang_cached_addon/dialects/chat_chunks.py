"""Streams of `/v1/chat/completions`: samples to chunks.

The steps of a sample's `deltas` are as in `chat_stream`. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from typing import Any

import orjson

from sglang_cached_addon.dialects.chat_stream import KNOWN_DELTA, Step
from sglang_cached_addon.dialects.openai.recording import CHOICE
from sglang_cached_addon.dialects.openai.replay import StoredChoice, member

KIND = "chat.completion.chunk"


def chunks(stored: StoredChoice, created: Any) -> tuple[list[bytes], bytes]:
    """The events of a choice, and the chunk that finishes it."""
    writer = _Writer(stored, created)
    steps = [_ReadStep.of(step) for step in stored.steps or _whole(stored.choice)]
    matched = [step.value for step in steps if step.kind is Step.MATCHED]
    said = writer.deltas([step for step in steps if step.kind is not Step.MATCHED])
    return said, writer.finish(matched)


@dataclass(frozen=True, slots=True)
class _ReadStep:
    """A step of a sample's `deltas`, with all its parts."""

    kind: Step
    value: Any
    rows: int | None
    tokens: int | None

    @classmethod
    def of(cls, step: Any) -> _ReadStep:
        if isinstance(step, int):
            return cls(Step.CONTENT, step, None, None)
        kind, value, rows, tokens = (*step, None, None, None)[:4]
        return cls(Step(kind), value, rows, tokens)

    @property
    def length(self) -> int:
        """How long its text is, roughly."""
        return self.value if isinstance(self.value, int) else len(orjson.dumps(self.value))


def _whole(choice: dict[str, Any]) -> list[Any]:
    """The steps of a sample that did not come as a stream: one for each kind of thing it says."""
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
    others = {n: v for n, v in message.items() if n not in KNOWN_DELTA and v is not None}
    if others:
        steps.append([Step.OTHER, others])
    if rows := member(logprobs, "content", list):
        if not steps:
            steps.append([Step.NOTHING, None])
        steps[0].append(len(rows))
    return steps


class _Writer:
    """Writes the chunks of one choice as SGLang does."""

    def __init__(self, stored: StoredChoice, created: Any) -> None:
        self._stored = stored
        self._choice = stored.choice
        message = member(stored.choice, "message", dict)
        content = StringIO(member(message, "content", str))
        reasoning = StringIO(member(message, "reasoning_content", str))
        self._texts = {Step.CONTENT: content, Step.PARSED: content, Step.REASONING: reasoning}
        """By kind of step: the text of which it is the next part."""
        self._rows = member(member(stored.choice, "logprobs", dict), "content", list)
        head = stored.head(KIND, created)
        self._begin = b'data: %b,"choices":[{"index":%d,"delta":' % (head, stored.index)

    def deltas(self, steps: list[_ReadStep]) -> list[bytes]:
        said = [self._begin + _ROLE]
        counts = self._counts(steps)
        row = 0
        for k, step in enumerate(steps):
            logprobs = b"null"
            if step.rows is not None:
                logprobs = orjson.dumps({"content": self._rows[row : row + step.rows]})
                row += step.rows
            end = _END
            if counts is not None:
                end = b'],"usage":%b}\n\n' % self._stored.usage_so_far(counts[k])
            elif step.kind in (Step.PARSED, Step.TOOL_CALLS):
                end = b'],"usage":null}\n\n'
            delta = self._delta(step)
            said.append(self._begin + delta + b',"logprobs":' + logprobs + _GOES_ON + end)
        return said

    def _delta(self, step: _ReadStep) -> bytes:
        """What a step adds to the message."""
        if step.kind is Step.NOTHING:
            return b'{"reasoning_content":null}'
        text = self._texts.get(step.kind)
        return _DELTAS[step.kind] % orjson.dumps(text.read(step.value) if text else step.value)

    def _counts(self, steps: list[_ReadStep]) -> list[int] | None:
        """The tokens so far at each step, where the client wants them."""
        if not self._stored.is_counted:
            return None
        lengths = [step.length for step in steps]
        return self._stored.counts(lengths, [step.tokens for step in steps])

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
        return said + self._stored.tail() + b"}\n\n"


_ROLE = (
    b'{"reasoning_content":null,"role":"assistant","content":""},"logprobs":null,'
    b'"finish_reason":null,"matched_stop":null}]}\n\n'
)
_DELTAS = {
    Step.CONTENT: b'{"reasoning_content":null,"content":%b}',
    Step.PARSED: b'{"role":null,"content":%b,"reasoning_content":null}',
    Step.REASONING: b'{"reasoning_content":%b}',
    Step.TOOL_CALLS: b'{"role":null,"content":null,"reasoning_content":null,"tool_calls":%b}',
    Step.OTHER: b"%b",
}
_GOES_ON = b',"finish_reason":null,"matched_stop":null}'
_END = b"]}\n\n"
