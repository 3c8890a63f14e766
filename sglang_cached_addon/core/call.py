"""What a call asks for, what is fetched for it, and the samples that an answer is taken apart into.

Pure values, which all HTTP APIs share. A sample is kept as the complete answer that its API gives
for `n=1`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import zip_longest
from typing import Any, Protocol

from sglang_cached_addon.core.identity import UNKNOWN, VLLM, Server
from sglang_cached_addon.core.policy import Reason

Mint = Callable[[], str]
"""Gives a new unique request id: 32 hexadecimal digits, like SGLang's own."""


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a client wants of a streamed answer."""

    usage: bool = False
    """`stream_options.include_usage`: the usage of the whole answer, at its end."""
    continuous_usage: bool = False
    """`stream_options.continuous_usage_stats`: the usage so far, with each delta."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request body, read."""

    body: dict[str, Any]
    """As parsed; forwarding starts from it, so unknown fields survive."""
    items: tuple[bytes, ...]
    """The canonical content of each prompt, in the order of the call: one pool each."""
    n: int
    """Samples wanted of each item."""
    batched: bool
    """The call has a list of prompts (of any length)."""
    rids: tuple[str, ...] = ()
    """The ids that the client will see, one per item; empty where SGLang invents them."""
    stream: Streaming | None = None
    """None: one JSON document. Both forms are answered from the same pools."""
    is_seeded: bool = False
    """It names a seed, of which each of its samples may be a function."""

    @property
    def total(self) -> int:
        """Samples in the whole answer."""
        return len(self.items) * self.n


@dataclass(frozen=True, slots=True)
class Fill:
    """The one upstream call that fetches the samples which are short."""

    body: dict[str, Any]
    order: tuple[int, ...]
    """The item behind each prompt that is sent; an item may come more than once."""
    n: int
    """Samples asked of each prompt that is sent."""
    rids: dict[str, str] = field(default_factory=dict)
    """The client's id to the unique one that goes upstream, for ids a client can name."""
    server: Server = UNKNOWN
    """Whom it is for."""
    skip: tuple[int, ...] = ()
    """How many of the first samples of each prompt that is sent are there already; empty: none."""
    added: tuple[str, ...] = ()
    """Members of each choice that are there only because we ask for them."""
    counts: bool = False
    """The usage so far is with each delta of its stream only because we ask for it."""

    @property
    def total(self) -> int:
        """Samples that upstream is asked for."""
        return len(self.order) * self.n

    def is_skipped(self, choice: int) -> bool:
        """Whether a choice of the answer is one that is there already."""
        return bool(self.skip) and choice % self.n < self.skip[choice // self.n]


@dataclass(frozen=True, slots=True)
class Generation:
    """One sample as it came from upstream."""

    item: int
    answer: bytes
    """Compact JSON: the API's whole answer for `n=1`."""
    tokens: int
    """Completion tokens."""
    deltas: bytes = b""
    """JSON, in the dialect's own words: where the events of its stream began and ended; empty
    where it did not come as a stream."""


class Recorded(Protocol):
    """What a dialect is given of a sample, stored or new."""

    @property
    def answer(self) -> bytes: ...

    @property
    def deltas(self) -> bytes: ...


class Part(Enum):
    """What an event is to the stream that it is part of."""

    DELTA = "of one choice"
    STATE = "of one choice: all of it so far, so that none before it is needed"
    FINISH = "the end of a choice, after the last delta of all"
    USAGE = "the usage of the whole answer"
    ERROR = "an error"
    OTHER = "unknown"


@dataclass(frozen=True, slots=True)
class Script:
    """The events of a stream from the store, without its last, `[DONE]`."""

    deltas: tuple[list[bytes], ...]
    """The events of each choice."""
    finishes: list[bytes] = field(default_factory=list)
    """What comes when the last choice has ended."""

    def in_turn(self) -> list[bytes]:
        """The choices side by side, as a server that generates them at the same time sends them."""
        if len(self.deltas) == 1:
            return self.deltas[0]
        rounds = zip_longest(*self.deltas)
        return [event for events in rounds for event in events if event is not None]


@dataclass(frozen=True, slots=True)
class Split:
    """An upstream answer taken apart."""

    generations: tuple[Generation, ...]
    refusal: Reason | None = None
    """Why none of it may be stored, though it may be answered."""
    versions: frozenset[str] = frozenset()
    """The `weight_version`s that the answer names."""


def with_deltas(split: Split, deltas: Sequence[bytes]) -> Split:
    """With the boundaries that each generation's stream had."""
    pairs = zip(split.generations, deltas, strict=True)
    return replace(split, generations=tuple(replace(g, deltas=d) for g, d in pairs))


def take_out(fill: Fill, members: Any) -> None:
    """Takes what only we have asked for out of a choice, or out of an answer's own members. vLLM
    says null where nobody has asked."""
    for name in fill.added if isinstance(members, dict) else ():
        if name in members and fill.server.engine == VLLM:
            members[name] = None
        else:
            members.pop(name, None)


def without_skipped(split: Split, fill: Fill) -> Split:
    """Without the samples that were there already."""
    if not fill.skip:
        return split
    kept = [g for k, g in enumerate(split.generations) if not fill.is_skipped(k)]
    return replace(split, generations=tuple(kept))
