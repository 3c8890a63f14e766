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
from sglang_cached_addon.simulator.words import Prompt, token_ids


@dataclass(slots=True)
class Ask:
    """A checked sampling request: `n` samples for each prompt, prompt by prompt."""

    body: Json
    prompts: list[Prompt]
    params: list[Json]
    """Native sampling parameters, of each prompt."""
    many: bool
    """A list was given: request ids are numbered, /generate answers a list."""
    n: int = 1
    model: str = ""
    """As the OpenAI routes are given it."""
    chat: bool = False
    thinks: bool = False
    """Half of the tokens are to be reasoning."""
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

    def rids(self) -> list[str]:
        """One request id per sample; the client's only where SGLang keeps it."""
        rid = self.body.get("rid")
        total = len(self.prompts) * self.samples
        if rid is None or self.samples > 1:
            return [uuid.uuid4().hex for _ in range(total)]
        if isinstance(rid, list):
            return rid
        return [f"{rid}_{place}" for place in range(total)] if self.many else [rid]


@dataclass
class Run:
    """One sample on its way: all it will say, and how much of that is out by now."""

    index: int
    rid: str
    prompt: Prompt
    tokens: list[str]
    ids: list[int]
    text: str
    """All that is said, without the matched stop string."""
    reason: Json
    """The native `finish_reason`, once it is over."""
    version: str
    """The label of the weights."""
    thinking: int = 0
    """How many leading tokens are reasoning."""
    tool: str = ""
    """The name of the function that is called; the text is its arguments."""
    call_id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    started: float = field(default_factory=time.perf_counter)
    count: int = 0
    """Tokens so far."""
    sent: int = 0
    """Tokens in the events so far."""
    silent: bool = True
    """There was no event yet."""
    over: bool = False

    def advance(self, count: int) -> None:
        self.count = min(count, len(self.ids))
        self.over = self.count == len(self.ids)

    def said(self, start: int, end: int) -> str:
        """The text of tokens `start` to `end`, as far as it is not trimmed."""
        head = len("".join(self.tokens[:start]))
        return self.text[head : len("".join(self.tokens[:end]))]

    @property
    def prompt_tokens(self) -> int:
        return len(token_ids(self.prompt))

    @property
    def reasoning(self) -> int:
        return min(self.count, self.thinking)

    def weight_versions(self) -> list[Json]:
        return [{"version": self.version, "start": 0, "end": self.count}]


@dataclass(frozen=True, slots=True)
class Api:
    """What is particular to one sampling route."""

    read: Callable[[Json], Ask]
    answer: Callable[[Ask, list[Run]], Any]
    events: Callable[[Ask, Run], Iterable[Json]]
    """For the tokens since a run's last event."""
    last_events: Callable[[Ask, list[Run]], Iterable[Json]]
    """After the last sample; the samples come in the order of their last events."""
