"""Streams of `/v1/completions`: chunks to samples, and samples to chunks.

Every chunk adds to the text of a choice; the last one also says how it ended. A sample's
`deltas` is a list of steps, one a chunk: a number of characters, or `[characters, rows,
tokens]`, of which those at the end may be missing. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.openai.recording import CHOICE, refuse_unknown
from sglang_cached_addon.dialects.openai.replay import StoredChoice, member

KIND = "text_completion"

_KNOWN = frozenset((*CHOICE, "text"))
_ROWS = "tokens"
"""The member of `logprobs` that has an entry for every token."""


class ChoiceRecorder:
    """Puts the chunks of one choice together."""

    def __init__(self) -> None:
        self.is_finished = False
        self.is_text = False
        self.rows = 0
        self._text: list[str] = []
        self._logprobs: dict[str, list[Any]] | None = None
        self._steps: list[Any] = []
        self._end: dict[str, Any] = {}

    def add(self, choice: dict[str, Any], tokens: int | None) -> bool:
        text = choice.get("text")
        if not isinstance(text, str) or self.is_finished:
            raise Refused(Reason.UNREADABLE)
        rows = self._take_rows(choice.get("logprobs"))
        self._text.append(text)
        step = [len(text), rows, tokens]
        while step[-1] is None:
            step.pop()
        self._steps.append(step if len(step) > 1 else len(text))
        self.is_finished = choice.get("finish_reason") is not None
        refuse_unknown(choice, _KNOWN, is_end=self.is_finished)
        self.is_text = not self.is_finished and len(step) == 1
        if self.is_finished:
            self._end = {n: v for n, v in choice.items() if n not in ("index", "text")}
        return False

    def say(self, text: str) -> None:
        self._text.append(text)
        self._steps.append(len(text))

    def text(self, choice: Any) -> Any:
        return choice["text"]

    def _take_rows(self, logprobs: Any) -> int | None:
        if logprobs is None:
            return None
        if not isinstance(logprobs, dict) or not isinstance(logprobs.get(_ROWS), list):
            raise Refused(Reason.UNREADABLE)
        if self._logprobs is None:
            self._logprobs = {name: [] for name in logprobs}
        count = len(logprobs[_ROWS])
        for name, rows in logprobs.items():
            if not isinstance(rows, list) or name not in self._logprobs:
                raise Refused(Reason.UNREADABLE)
            self._logprobs[name] += rows
        self.rows += count
        # Those that were not asked for stay empty.
        if any(len(rows) not in (0, self.rows) for rows in self._logprobs.values()):
            raise Refused(Reason.UNREADABLE)
        return count

    def choice(self) -> dict[str, Any]:
        text = "".join(self._text)
        return {"index": 0, "text": text, **self._end, "logprobs": self._logprobs}

    def steps(self) -> list[Any]:
        return self._steps


def chunks(stored: StoredChoice, created: Any) -> tuple[list[bytes], None]:
    """The events of a choice, of which the last one also finishes it."""
    choice, text = stored.choice, member(stored.choice, "text", str)
    logprobs = member(choice, "logprobs", dict)
    steps = stored.steps
    if not steps:
        rows = member(logprobs, _ROWS, list)
        steps = [[len(text), len(rows)] if rows else len(text)]
    told = [(*((step,) if isinstance(step, int) else step), None, None)[:3] for step in steps]
    begin = b'data: %b,"choices":[{"index":%d,"text":' % (stored.head(KIND, created), stored.index)
    counts = None
    if stored.is_counted:
        counts = stored.counts([length for length, _, _ in told], [known for _, _, known in told])
    said: list[bytes] = []
    at = row = 0
    for k, (length, rows, _) in enumerate(told):
        scored = b"null"
        if rows is not None:
            # A list may be empty for all, as that of the alternatives is if none were asked for.
            end = row + rows
            news = {n: v[row:end] if isinstance(v, list) else v for n, v in logprobs.items()}
            scored = orjson.dumps(news)
            row = end
        usage = b"null" if counts is None else stored.usage_so_far(counts[k])
        rest = _last(choice) if k == len(told) - 1 else _GOES_ON
        delta = orjson.dumps(text[at : at + length])
        tail = stored.tail() if k == len(told) - 1 else b""
        members = (begin, delta, scored, rest, usage, tail)
        said.append(b'%b%b,"logprobs":%b,%b}],"usage":%b%b}\n\n' % members)
        at += length
    return said, None


_GOES_ON = b'"finish_reason":null,"matched_stop":null'


def _last(choice: dict[str, Any]) -> bytes:
    """The members of a choice's last chunk that tell how it ended."""
    others = {name: value for name, value in choice.items() if name not in _KNOWN}
    end = {n: choice.get(n) for n in ("finish_reason", "matched_stop")}
    return orjson.dumps({**end, **others})[1:-1]
