"""A checked request (`Ask`), a sample on its way (`Run`), and what one route makes of them (`Api`).

Samples are numbered prompt by prompt. A `Run` is drawn whole; `count` says how much is out.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sglang_cached_addon.simulator.profile import Json
from sglang_cached_addon.simulator.words import Prompt

ABORTED: Json = {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
ABORTED_IN_QUEUE: Json = {"type": "abort", "message": "Abort in waiting queue"}


@dataclass(slots=True)
class Ask:
    """A checked sampling request: `n` samples for each prompt, prompt by prompt."""

    body: Json
    prompts: list[Prompt]
    params: list[Json]  # of each prompt
    many: bool  # a list was given: rids are numbered, /generate answers a list
    n: int = 1
    model: str = ""  # as the OpenAI routes are given it
    chat: bool = False
    thinks: bool = False  # half of the tokens are to be reasoning
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def samples(self) -> int:
        return max(1, self.n)

    def item(self, name: str, run: Run, default: Any) -> Any:
        """A field that may be given once or as a list with one value per prompt."""
        value = self.body.get(name)
        if isinstance(value, list):
            value = value[run.index // self.samples]
        return default if value is None else value


@dataclass(slots=True)
class Run:
    """One sample on its way: all it will say, and how much of that is out by now."""

    index: int
    rid: str
    prompt: Prompt
    tokens: list[str]
    ids: list[int]
    text: str  # without the matched stop string
    reason: Json  # finish_reason once it is over
    spans: list[tuple[str, float]]  # weight versions, and the share of the tokens each ends at
    thinking: int = 0  # leading tokens that are reasoning
    tool: str = ""  # name of the function called; the text is its arguments
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    started: float = field(default_factory=time.perf_counter)
    count: int = 0  # tokens so far
    sent: int = 0  # tokens in the events so far
    silent: bool = True  # no event yet
    over: bool = False
    told: bool = False  # the end has been handed on
    aborted: bool = False  # by a client
    queued: bool = False  # it was aborted before it began

    def advance(self, count: int) -> None:
        self.count = min(count, len(self.ids))
        self.over = self.count == len(self.ids)

    def shorten(self, count: int) -> None:
        """Say no more than these tokens, and that it was aborted."""
        self.text, self.reason = self.said(0, count), ABORTED
        del self.tokens[count:], self.ids[count:]

    def abort(self, waiting: bool) -> None:
        """End it with what it has said; one that has not begun may still wait for its turn."""
        if not self.over:
            self.over = self.aborted = True
            self.shorten(self.count)
            if waiting and not self.count:
                self.queued, self.reason = True, ABORTED_IN_QUEUE

    def said(self, start: int, end: int) -> str:
        """The text of tokens `start` to `end`, as far as it is not trimmed."""
        head = len("".join(self.tokens[:start]))
        return self.text[head : len("".join(self.tokens[:end]))]

    @property
    def reasoning(self) -> int:
        return min(self.count, self.thinking)

    def weight_versions(self) -> list[Json]:
        found, start = [], 0
        for version, share in self.spans:
            end = int(share * self.count)
            found.append({"version": version, "start": start, "end": end})
            start = end
        return found


@dataclass(frozen=True, slots=True)
class Api:
    """What is particular to one sampling route."""

    read: Callable[[Json], Ask]
    answer: Callable[[Ask, list[Run]], Any]
    events: Callable[[Ask, Run, bool], Iterable[Json]]
    """For the tokens since a run's last event; the flag is `Profile.incremental`."""
    last_events: Callable[[Ask, list[Run]], Iterable[Json]]
    """After the last sample; the samples come in the order of their last events."""
