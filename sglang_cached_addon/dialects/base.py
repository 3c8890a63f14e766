"""The words that all dialects share: what a call is, what a fill is, and the plugin's shape.

Pure: no I/O, no clock, no randomness (ids are minted by an argument). A sample is kept as
the complete answer that its API gives for `n=1`; `write` puts samples together into the
answer for any `n`, and `split` is its inverse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.call import Call, Fill, Mint, Part, Recorded, Script, Split
from sglang_cached_addon.core.identity import SGLANG, UNKNOWN, Server
from sglang_cached_addon.core.policy import MAX_N, Reason, Refused

NULL = type(None)

TransportTable = Mapping[str, tuple[type, ...]]
"""Body fields that are left out of the key, each with the JSON types it is left out for (an
object: of text, or of booleans). Another value stays in the key, so that upstream can refuse it."""


class Recorder(Protocol):
    """Makes samples of a streamed answer, as it comes."""

    def add(self, event: Any) -> tuple[Part, int]:
        """Takes the parsed data of the next event; gives what it is, and of which choice.

        Raises `Refused` where it is not understood; after that it only tells what events are."""

    def split(self) -> Split:
        """The samples of a stream that has ended; raises `Refused` if they are not whole."""


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
