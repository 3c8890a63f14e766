"""What both APIs ask for: fields that are no part of the key, streams, and what is asked besides.

Pure: reads request bodies, and adds to the bodies that go upstream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, StreamOptions
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import base, reading

TRANSPORT: base.TransportTable = {
    "rid": (str, list, base.NULL),
    "stream": (bool,),
    "stream_options": (dict, base.NULL),
    "user": (str, base.NULL),
    "session_id": (str, base.NULL),
    "priority": (int, base.NULL),
    "custom_labels": (dict, base.NULL),
    "routed_dp_rank": (int, base.NULL),
    "data_parallel_rank": (int, base.NULL),
    "prompt_cache_key": (str, base.NULL),
    "safety_identifier": (str, base.NULL),
}
"""Request identity, scheduling and framing: nothing of it reaches the model. The last two are
OpenAI's, and name a client as `user` does."""

UNSTREAMABLE = (
    "return_hidden_states",
    "return_routed_experts",
    "return_cached_tokens_details",
    "return_spec_tokens_details",
    "return_token_ids",
    "return_prompt_token_ids",
    "return_input_ids_in_sglext",
    "return_output_ids_in_sglext",
    "return_sampling_mask",
    "return_meta_info",
)
"""Fields that a stream answers in chunks of their own, or not at all."""

# Reported for the first sample only, or for all of them in one place, so that samples have none of
# their own to keep.
_SHARED_REPORTS = (
    "return_routed_experts",
    "return_cached_tokens_details",
    "return_spec_tokens_details",
)


def probes(model: str, prompt: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """As `Dialect.probes`: all servers of these APIs generate at least one token."""
    named = {"model": model} if model else {}
    return ({**named, **prompt, "max_tokens": 1, "temperature": 0},)


def refuse_dependent(body: dict[str, Any], total: int) -> None:
    """Raises `Refused` where what is said of a sample depends on the others of its call."""
    if body.get("best_of") not in (None, 1):
        raise Refused(Reason.BEST_OF)
    if total > 1 and any(body.get(name) for name in _SHARED_REPORTS):
        raise Refused(Reason.INSEPARABLE)


def streaming(body: dict[str, Any]) -> StreamOptions | None:
    """How an answer is to be streamed, if it is. Raises `Refused`."""
    if not reading.is_stream(body, UNSTREAMABLE):
        return None
    options = body.get("stream_options") or {}
    known = ("include_usage", "continuous_usage_stats")
    if not isinstance(options, dict) or any(
        name not in known or type(value) not in (bool, base.NULL) for name, value in options.items()
    ):
        raise Refused(Reason.MALFORMED)
    return StreamOptions(*(bool(options.get(name)) for name in known))


def ask_for_usage(call: Call, body: dict[str, Any], server: Server, *, is_one: bool) -> bool:
    """Makes a stream of upstream tell its usage, which JSON answers have, and with each chunk the
    usage so far, where there are many choices, each with its own, or where the answer may be cut.
    Gives whether the client has not asked for the latter."""
    if not call.stream:
        return False
    options = {**(body.get("stream_options") or {}), "include_usage": True}
    if server.streams_apart and (is_one or options != (body.get("stream_options") or {})):
        return False  # what is given is what the client has asked for, and no more
    body["stream_options"] = options
    may_be_cut = call.is_greedy and server.reuse.is_possible
    is_told = server.engine in (SGLANG, VLLM) and (may_be_cut or not is_one)
    counts = is_told and not call.stream.continuous_usage
    if counts:
        options["continuous_usage_stats"] = True
    return counts


def ask_for_tokens(
    call: Call, body: dict[str, Any], server: Server, tells: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Makes each choice of a JSON answer tell its tokens, where the server knows how: `tells` has
    the field to ask with, and the members of a choice that it brings. Gives those that the client
    has not asked for."""
    field, *members = tells.get(server.engine, ("",))
    if call.stream or not field or body.get(field):
        return ()
    body[field] = True
    return tuple(members)
