"""What is found for a call: a hit, a bypass, or what is known of it and has to be fetched.

Values, which `lookup` and `exchange` make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sglang_cached_addon.core import neighbours
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.call import Call, Split, UpstreamCall
from sglang_cached_addon.core.ignoring import LeftOut
from sglang_cached_addon.core.outcome import SHOWN, Kind, Outcome, Saved, hit_status
from sglang_cached_addon.core.places import Pool
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason, Terms
from sglang_cached_addon.dialects.base import Dialect, generating
from sglang_cached_addon.wire import http1, sse

if TYPE_CHECKING:
    from sglang_cached_addon.service.claims import Claim

JSON = ((b"Content-Type", b"application/json"),)
"""The header fields of an answer in JSON that is ours."""

EVENTS = ((b"Content-Type", http1.EVENT_STREAM.encode()),)
"""The header fields of a stream that is ours."""


@dataclass(frozen=True)
class Hit:
    """Every sample was stored: the answer's body."""

    body: bytes
    """The body of the answer. That of a stream is in chunks of HTTP, one for each event."""
    outcome: Outcome
    saved: Saved
    model: str
    """What the call names as its model; empty where it names none."""
    is_stream: bool = False
    longest: int = 0
    """Completion tokens of the longest of its samples."""

    @classmethod
    def plain(cls, key: bytes, sample: Sample, model: str) -> Hit:
        """A sample as the whole answer, which it is to a plain call for one."""
        saved = Saved(1, sample.tokens, sample.seconds)
        outcome = Outcome(Kind.HIT, 1, 1, oldest=sample.stored_at, key=key, places=b"0")
        return cls(sample.answer, outcome, saved, model)

    @cached_property
    def head(self) -> bytes:
        """As of `http1.hit_head`: most hits are given again, so it is written once."""
        status = hit_status(self.outcome.key, self.outcome.detail)
        places = self.outcome.places
        return http1.hit_head(len(self.body), status, places, is_stream=self.is_stream)

    def seconds(self, rate: float) -> float:
        """How long a stream takes at a pace in tokens a second; 0: no time at all."""
        return self.longest / rate if rate else 0.0


@dataclass(frozen=True, slots=True)
class Bypass:
    """Not looked up: to be passed on as it came."""

    outcome: Outcome


Places = tuple[Sequence[int], ...]
"""For each prompt of a call, the places of its samples."""


@dataclass(slots=True, eq=False)
class Known:
    """A request body that was read, and the hits that it was answered with."""

    dialect: Dialect
    call: Call
    keys: tuple[bytes, ...]
    model: str = ""
    """What the call names as its model; empty where it names none."""
    model_version: int = 0
    """The version of the model whose keys these are, as `Lookup.enter` was told it."""
    raw: bytes = b""
    """The name of the body, where the first sample of its pool is the whole answer; else empty."""
    hits: dict[Places, Hit] = field(default_factory=dict)
    """The answers that it had, by the places of their samples."""
    generation: int = -1
    """The generation of the store of which these are."""
    has_model: bool = True
    """It is known which model answers."""
    draws: bool = False
    """Equal calls get different samples, where they are of a run."""
    pools: tuple[Pool, ...] = ()
    """Its pools, as runs have them."""
    naming: Callable[[Iterable[bytes]], tuple[bytes, ...]] = tuple
    """Gives the keys that other items would have in such a call of the same client."""
    left_out: tuple[LeftOut, ...] = ()
    """What rules have left out of the key of each item; empty if that is nothing of the call."""
    contents: Callable[[dict[str, Any]], Iterable[bytes]] | None = None
    """Gives what the items of another body would be named by, where something is left out."""

    @property
    def key(self) -> bytes:
        """The key of its pool; empty where it has several, or nobody knows which model answers."""
        return self.keys[0] if len(self.keys) == 1 and self.has_model else b""

    def keys_of(self, body: dict[str, Any]) -> tuple[bytes, ...]:
        """The keys that another body would have as such a call of the same client."""
        return self.naming(self.contents(body) if self.contents else self.dialect.read(body).items)

    @property
    def origins(self) -> list[bytes]:
        """What its own samples have as `Sample.origin`, for each item; empty if they have none."""
        return [left_out.origin for left_out in self.left_out]


class Manner(Enum):
    """How several calls are made one."""

    N = "one prompt, and as many samples of it as all want"
    LIST = "a list of equal prompts"
    ALONE = "they are not"


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Samples are short: `body` goes upstream (None: the client's own bytes)."""

    known: Known
    plan: Plan
    sent: UpstreamCall
    body: bytes | None
    terms: Terms
    stamp: Stamp
    claim: Claim | None = None
    """What the call has as one of a run."""
    manner: Manner = Manner.ALONE
    """How it is one call with others of the run."""

    @property
    def asks_more(self) -> bool:
        """Whether it asks for what its client has not, of a server that may refuse that."""
        is_sglang = self.sent.server.engine == neighbours.SGLANG
        return not is_sglang and bool(self.sent.added or self.sent.counts)

    @property
    def is_shared(self) -> bool:
        """Whether it is for other calls of the same run, too."""
        return self.manner is not Manner.ALONE

    @property
    def is_whole(self) -> bool:
        """Whether upstream is asked for just what the client asked for."""
        is_all = self.sent.total == self.plan.call.size and not any(self.sent.skip)
        is_other = self.is_shared or self.sent.is_wider or self.plan.call.is_part
        return is_all and not is_other

    @property
    def origins(self) -> list[set[bytes]]:
        """What the samples of each item have as `Sample.origin`: those that are stored, and those
        that it brings. Empty if that is nothing."""
        pairs = zip(self.known.origins, self.plan.stored, strict=False)
        return [{own, *(sample.origin for sample in pool)} for own, pool in pairs]

    def caption(self, request_id: str, run: str) -> str:
        """What it is for, in words for people."""
        count = self.sent.total
        samples = f"{count} sample{'s' * (count != 1)}"
        if self.is_shared:
            samples += " for equal calls"
        elif self.plan.call.is_part:
            samples += " (a portion of a list)"
        elif not self.is_whole:
            samples += f" (of {self.plan.call.total})"
        key = self.known.key[:SHOWN].hex()
        named = (f"key {key}" * bool(key), f"run {run}" * bool(run))
        return ", ".join([f"fetch of {samples}", f"id {request_id}", *filter(None, named)])

    @property
    def keys(self) -> frozenset[bytes]:
        """The pools that it fills."""
        return frozenset(self.plan.keys[item] for item in self.sent.order)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What must still be as it was when a fetch was planned, for its answer to be stored."""

    clears: int
    """A number that rises when any of its pools is cleared."""
    model_version: int
    """The version of the model, as `Lookup.enter` was told it."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What upstream answered to a fetch."""

    status: int
    body: bytes = b""
    """The body that the client is shown; empty where it is only a part of that, or was streamed."""
    split: Split | None = None
    """The samples in it; None where there are none."""
    refusal: Reason | None = None
    """Why it is not to be stored."""


def events_of(
    known: Known, samples: Sequence[Sequence[Sample]], *, is_counted: bool = True
) -> list[bytes]:
    """A stream of whole samples; with the usage that its client wants, if they are counted."""
    dialect, call = generating(known.dialect), known.call
    script = dialect.script(call, samples)
    events = [*script.in_turn(), *script.finishes]
    wants_usage = is_counted and call.stream is not None and call.stream.usage
    if wants_usage and (usage := dialect.usage(call, samples)):
        events.append(usage)
    return [*events, script.end or sse.DONE]


def model_of(body: Any) -> str:
    """What a parsed body names as its model; empty where it names none."""
    model = body.get("model")
    return model if isinstance(model, str) else ""
