"""The words that all dialects share: what a call is, what a fill is, and the plugin's shape.

Pure: no I/O, no clock, no randomness (ids are minted by an argument). A sample is kept as
the complete answer that its API gives for `n=1`; `write` puts samples together into the
answer for any `n`, and `split` is its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import zip_longest
from typing import Any, Protocol

from sglang_cached_addon import keys
from sglang_cached_addon.identity import SGLANG, UNKNOWN, VLLM, Server
from sglang_cached_addon.policy import MAX_N, Reason, Refused

Mint = Callable[[], str]
"""Gives a new unique request id: 32 hexadecimal digits, like SGLang's own."""

NULL = type(None)

TransportTable = Mapping[str, tuple[type, ...]]
"""Body fields that are left out of the key, each with the JSON types it is left out for (an
object: of text, or of booleans). Another value stays in the key, so that upstream can refuse it."""


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


class Recorder(Protocol):
    """Makes samples of a streamed answer, as it comes."""

    def add(self, event: Any) -> tuple[Part, int]:
        """Takes the parsed data of the next event; gives what it is, and of which choice.

        Raises `Refused` where it is not understood; after that it only tells what events are."""

    def split(self) -> Split:
        """The samples of a stream that has ended; raises `Refused` if they are not whole."""


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


class Dialect(Protocol):
    """One HTTP API. Third parties add theirs through the entry-point group
    `sglang_cached.dialects`; the entry point names an instance."""

    @property
    def name(self) -> str:
        """Part of the key; lower-case, stable for ever."""

    @property
    def routes(self) -> Iterable[tuple[str, str]]:
        """The (method, path) pairs that it answers for."""

    @property
    def transport(self) -> TransportTable:
        """Body fields that are not part of the key."""

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        """The bodies of the smallest calls of this API, for this model if it has a name, the
        mildest first: a server that answers one of them with a 200 lets its sender generate."""

    def read(self, body: dict[str, Any]) -> Call:
        """Raises `Refused` for a body that is not understood in full."""

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> Fill:
        """The call that fetches `shortfalls[i]` samples of item i; at least one is not 0."""

    def split(self, call: Call, fill: Fill, answer: Any) -> Split:
        """Takes apart the parsed JSON that answers `fill`.

        Raises `Refused` when it is not what was asked for.
        """

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        """The answer to `call` from `n` samples of each item."""

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        """The answer for `n=1` to a call of this kind that was aborted while it waited, at this
        Unix time: without a token."""

    # Streams. A dialect whose `read` refuses them is not asked for the rest.

    def record(self, call: Call, fill: Fill) -> Recorder:
        """What makes samples of the stream that answers `fill`."""

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        """The events of these samples, at most `n` of each item, as the answer to `call`."""

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        """The event with the usage of a whole answer, if the API has one."""

    def without_usage(self, event: bytes, value: Any) -> bytes:
        """A delta, given also parsed, without the usage so far that only we have asked for
        (`Fill.counts`)."""

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        """Makes the parsed data of an event of a fill one of the client's answer: choice i of it
        is `choices[i]` there, beside the sample `like`."""

    def rename(self, event: Any, rids: Sequence[str]) -> None:
        """Puts the client's ids into the parsed data of an event."""

    def cut(self, event: Any) -> None:
        """Makes the parsed data of an event that has all of a choice so far (`Part.STATE`) its
        last, as if the choice was aborted then."""


def trimmed_n(shortfalls: Sequence[int]) -> int:
    """The `n` of a fill: the common shortfall, or 1 where items differ and are repeated."""
    wanted = {shortfall for shortfall in shortfalls if shortfall}
    return wanted.pop() if len(wanted) == 1 else 1


def fill_order(shortfalls: Sequence[int], n: int) -> tuple[int, ...]:
    """Which item each prompt of the fill is, so that one call fetches every shortfall."""
    return tuple(i for i, short in enumerate(shortfalls) for _ in range(short // n))


def draw(
    call: Call, shortfalls: Sequence[int], server: Server
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The `n`, `order` and `skip` of a fill.

    With a seed, sample i of a prompt may be a function of seed and i, as it is with vLLM: one that
    is asked for alone would be the first one again. So all are asked for, and those taken that are
    short. SGLang's seed says nothing of that: it makes all samples copies, or does nothing.
    """
    if call.is_seeded and server.engine != SGLANG:
        order = tuple(i for i, short in enumerate(shortfalls) if short)
        return call.n, order, tuple(call.n - shortfalls[i] for i in order)
    n = trimmed_n(shortfalls)
    return n, fill_order(shortfalls, n), ()


def content_fields(body: dict[str, Any], transport: TransportTable) -> dict[str, Any]:
    """The fields of a body that belong into the key."""
    return {
        name: value
        for name, value in body.items()
        if not (name in transport and _is_plain(value, transport[name]))
    }


def _is_plain(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, dict):
        return dict in types and set(map(type, value.values())) in (set(), {str}, {bool})
    return type(value) in types


def read_n(holder: Mapping[str, Any]) -> int:
    """`n` where it is a plain positive integer. SGLang has its own ideas of the others."""
    n = holder.get("n", 1)
    if type(n) is not int or not 1 <= n <= MAX_N:
        raise Refused(Reason.MALFORMED)
    return n


# State that the server holds (sessions), and calls that only mean something to one of a
# pair of prefill and decode servers.
_UNSTORABLE = {
    "session_params": Reason.STATE,
    "previous_response_id": Reason.STATE,
    "bootstrap_host": Reason.DISAGGREGATION,
    "bootstrap_port": Reason.DISAGGREGATION,
    "bootstrap_room": Reason.DISAGGREGATION,
    "bootstrap_pair_key": Reason.DISAGGREGATION,
    "decode_tp_size": Reason.DISAGGREGATION,
    "need_wait_for_mm_inputs": Reason.DISAGGREGATION,
    "num_items_assigned": Reason.DISAGGREGATION,
    "encoder_urls": Reason.DISAGGREGATION,
    "http_worker_ipc": Reason.DISAGGREGATION,
    "kv_hints": Reason.DISAGGREGATION,
}


def refuse_unstorable(body: dict[str, Any]) -> None:
    """Raises `Refused` for what no dialect looks up."""
    for name in given(body, _UNSTORABLE):
        raise Refused(_UNSTORABLE[name])


def is_stream(body: dict[str, Any], unstreamable: Collection[str]) -> bool:
    """Whether a streamed answer is wanted. Raises `Refused` for one with a field of those whose
    streams have another form."""
    stream = body.get("stream", False)
    if type(stream) is not bool:
        raise Refused(Reason.MALFORMED)  # null too, says SGLang
    if stream and any(body.get(name) for name in unstreamable):
        raise Refused(Reason.STREAM)
    return stream


def given(body: dict[str, Any], names: Collection[str]) -> list[str]:
    """Those of the names that have a value."""
    if body.keys().isdisjoint(names):
        return []
    return [name for name in names if body.get(name) is not None]


def read_rids(body: dict[str, Any], n: int, batched: bool, size: int) -> tuple[str, ...]:
    """The ids that SGLang would echo for this body.

    A string names a single prompt as it is and the items of a batch as `x_0`, `x_1`, ...;
    with `n > 1` every sample gets an id of its own and none is echoed.
    """
    rid = body.get("rid")
    if rid is None:
        return ()
    if isinstance(rid, list):
        if not batched or len(rid) != size or not all(isinstance(r, str) for r in rid):
            raise Refused(Reason.MALFORMED)
        if len(set(rid)) != size:
            raise Refused(Reason.MALFORMED)
        rids = tuple(rid)
    elif isinstance(rid, str):
        rids = tuple(f"{rid}_{i}" for i in range(size)) if batched else (rid,)
    else:
        raise Refused(Reason.MALFORMED)
    return rids if n == 1 else ()


def mint_rids(
    call: Call, body: dict[str, Any], order: Sequence[int], n: int, mint: Mint
) -> dict[str, str]:
    """Replaces `rid` in a fill's body by unique ones; gives what they stand for.

    Two calls in flight may share a client's `rid` with us, which SGLang would refuse.
    """
    if body.get("rid") is None:
        return {}
    if n > 1:
        body["rid"] = mint()
        return {}
    minted = [mint() for _ in order]
    body["rid"] = minted if call.batched else minted[0]
    return {
        call.rids[item]: unique for item, unique in zip(order, minted, strict=True) if call.rids
    }


def take(body: dict[str, Any], per_item: Iterable[str], order: Sequence[int]) -> None:
    """Keeps, in each per-item list of a body, the values of the items in `order`."""
    for name in per_item:
        values = body.get(name)
        if isinstance(values, list):
            body[name] = [values[i] for i in order]


def media_refusal(value: Any) -> bool:
    """Whether a media value (nested at will) names something outside of the body.

    URLs and paths are read by the server at the time of the call; `data:` and bare
    base64 are content.
    """
    if value is None:
        return False
    if isinstance(value, str):
        return not (value.startswith("data:") or _is_base64(value))
    if isinstance(value, dict):
        return "url" in value and media_refusal(value["url"])
    if isinstance(value, list):
        return any(media_refusal(member) for member in value)
    return True


_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


def _is_base64(value: str) -> bool:
    # A path can consist of these letters too. No picture is this short, and of those that
    # begin with a slash only JPEG is none.
    is_path = value.startswith("/") and not value.startswith("/9j/")
    return len(value) >= 64 and not is_path and _BASE64.issuperset(value)


def weights_refusal(meta: Any) -> Reason | None:
    """An answer that spans two sets of weights belongs to neither model."""
    spans = meta.get("weight_versions") if isinstance(meta, dict) else None
    return Reason.MIXED_WEIGHTS if isinstance(spans, list) and len(spans) > 1 else None


def weight_versions(metas: Iterable[Any]) -> frozenset[str]:
    """What `meta_info` or `metadata` objects name as the weights that they come from."""
    found = (meta.get("weight_version") for meta in metas if isinstance(meta, dict))
    return frozenset(version for version in found if isinstance(version, str))


def finish_refusal(kind: Any) -> Reason | None:
    """`kind` is a finish reason's type: a string, or None while the generation goes on."""
    if not isinstance(kind, str):
        return Reason.UNFINISHED
    return Reason.ABORT if kind == "abort" else None


def dump(value: Any) -> bytes:
    """Compact JSON, as SGLang writes it; raises `Refused` for what is nested too deep."""
    try:
        return keys.dumps(value)
    except TypeError:
        raise Refused(Reason.UNREADABLE) from None
