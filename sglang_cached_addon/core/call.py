"""What a call asks for, what is fetched for it, and the samples that an answer is taken apart into.

Pure values, which all HTTP APIs share. A sample is kept as the complete answer that its API gives
for `n=1`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import zip_longest
from typing import Any

import orjson

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.keys import canonical
from sglang_cached_addon.core.neighbours import VLLM
from sglang_cached_addon.core.policy import Reason

Mint = Callable[[], str]
"""A function that gives a new unique request id: 32 hexadecimal digits, like SGLang's own."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a client wants its answer to be streamed."""

    usage: bool = False
    """`stream_options.include_usage`: the stream ends with the usage of the whole answer."""
    continuous_usage: bool = False
    """`stream_options.continuous_usage_stats`: each delta comes with the usage so far."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a request body asks for."""

    body: dict[str, Any]
    """The parsed body. What is sent upstream is made from it, so that unknown fields survive."""
    items: tuple[bytes, ...]
    """The canonical content of each prompt, in the order of the call. Each names a pool."""
    n: int
    """How many samples of each item are wanted."""
    batched: bool
    """The call has a list of prompts, of any length."""
    rids: tuple[str, ...] = ()
    """The ids that the client will see, one per item. Empty where SGLang invents them."""
    stream: StreamOptions | None = None
    """None where the client wants one JSON document. Both forms are answered from the same
    pools."""
    is_seeded: bool = False
    """The call names a seed, so that each of its samples may depend on its place."""
    is_greedy: bool = False
    """The likeliest token is always chosen, so that one sample is as good as another."""
    is_pure: bool = False
    """Nothing is drawn or generated: each item has one answer, and its pool one sample."""
    is_verbatim: bool = True
    """A call for one sample is answered by that sample as it is kept."""
    is_apart: bool = False
    """Its items are those of streams alone (`as_streams`)."""
    may_be_kept: bool = False
    """A server that keeps answers keeps that to it: its client may come back to it."""
    is_part: bool = False
    """It is a portion of a call: its answer is put together with others."""
    rows: tuple[int, ...] = ()
    """The item that each row of the client's list is, where some stand in it more than once. Empty:
    they are the items."""

    @property
    def total(self) -> int:
        """How many samples the whole answer is made of."""
        return len(self.items) * self.n

    @property
    def size(self) -> int:
        """How many samples a client sees, each as often as it was asked for."""
        return (len(self.rows) or len(self.items)) * self.n


def as_streams(call: Call) -> Call:
    """The same call with items that nobody asks for but in the same manner, as a stream with the
    same options."""
    manner = {n: call.body[n] for n in ("stream", "stream_options") if call.body.get(n) is not None}
    items = (canonical({**orjson.loads(item), **manner}) for item in call.items)
    return replace(call, items=tuple(items), is_apart=True)


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """The upstream call that fetches the samples which a client's call lacks: it fills the
    pools."""

    body: dict[str, Any]
    """The request body that is sent."""
    order: tuple[int, ...]
    """The item of the client's call that each prompt is of. An item may come more than once."""
    n: int
    """How many samples of each prompt upstream is asked for."""
    rids: dict[str, str] = field(default_factory=dict)
    """The unique id that goes upstream, by the client's own id, where clients can name one."""
    server: Server = UNKNOWN
    """The server that it is sent to."""
    skip: tuple[int, ...] = ()
    """How many of the first samples of each prompt are stored already. Empty means none."""
    added: tuple[str, ...] = ()
    """The members of each choice that come only because the proxy, not the client, asks for
    them."""
    counts: bool = False
    """Each delta of the stream has the usage so far only because the proxy asks for it."""
    is_wider: bool = False
    """It asks for more than the client is shown, whose answer is written anew."""
    texts: tuple[str, ...] = ()
    """The texts of its rows, where their tokens are to be counted, as the answer tells only what
    they come to."""
    tokens: tuple[int, ...] = ()
    """How many tokens each of these has; empty where that is not known."""

    @property
    def total(self) -> int:
        """How many samples upstream is asked for in all."""
        return len(self.order) * self.n

    def is_skipped(self, choice: int) -> bool:
        """Whether a choice of the answer is a sample that is stored already."""
        return bool(self.skip) and choice % self.n < self.skip[choice // self.n]


@dataclass(frozen=True, slots=True)
class Generation:
    """A sample as it came from upstream."""

    item: int
    """The item of the call that it is a sample of."""
    answer: bytes
    """Compact JSON: the whole answer that the API gives for `n=1`."""
    tokens: int
    """How many completion tokens it has."""
    deltas: bytes = b""
    """Where the events of its stream began and ended: JSON whose form is the dialect's own. Empty
    where the sample did not come as a stream."""


Recorded = Sample | Generation
"""A sample, stored or new: a dialect sees its answer and its deltas."""


class Part(Enum):
    """What an event is within its stream."""

    DELTA = "news of one choice"
    STATE = "all of one choice so far, so that no event before it is needed"
    FINISH = "the end of a choice, behind the last delta of all choices"
    USAGE = "the usage of the whole answer"
    ECHO = "what the client itself has said, beside other things"
    ERROR = "an error"
    END = "the last event of the stream, which may repeat what the client has said"
    OTHER = "unknown"


@dataclass(frozen=True, slots=True)
class Script:
    """The events of a stream that is made from stored samples, but for the last."""

    deltas: tuple[list[bytes], ...]
    """For each choice, its events."""
    finishes: list[bytes] = field(default_factory=list)
    """The events that come when the last choice has ended."""
    end: bytes = b""
    """The last event; empty where that is `[DONE]`."""

    def in_turn(self) -> list[bytes]:
        """The deltas of all choices in turn, as a server that generates them together sends
        them."""
        if len(self.deltas) == 1:
            return self.deltas[0]
        rounds = zip_longest(*self.deltas)
        return [event for events in rounds for event in events if event is not None]


@dataclass(frozen=True, slots=True)
class Split:
    """An answer of upstream, taken apart into samples."""

    generations: tuple[Generation, ...]
    refusal: Reason | None = None
    """Why none of its samples may be stored, though the client may have them."""
    versions: frozenset[str] = frozenset()
    """The `weight_version`s that the answer names."""


def with_deltas(split: Split, deltas: Sequence[bytes]) -> Split:
    """The same samples, each with where the events of its stream began and ended."""
    pairs = zip(split.generations, deltas, strict=True)
    return replace(split, generations=tuple(replace(g, deltas=d) for g, d in pairs))


def take_out(sent: UpstreamCall, members: Any) -> None:
    """Takes the members that only the proxy has asked for out of a choice or an answer, in place.
    vLLM has null for those that nobody asks for."""
    for name in sent.added if isinstance(members, dict) else ():
        if name in members and sent.server.engine == VLLM:
            members[name] = None
        else:
            members.pop(name, None)


def without_skipped(split: Split, sent: UpstreamCall) -> Split:
    """The same answer without the samples that were stored already."""
    if not sent.skip:
        return split
    kept = [g for k, g in enumerate(split.generations) if not sent.is_skipped(k)]
    return replace(split, generations=tuple(kept))
