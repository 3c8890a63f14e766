"""What SGLang refuses: bodies that do not fit their schema, values out of range."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import orjson

from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json
from sglang_cached_addon.simulator.refusals import Flaw, Refusal, crash, openai_error
from sglang_cached_addon.simulator.sample import Ask
from sglang_cached_addon.simulator.words import as_list, token_ids


def busy() -> Refusal:
    return openai_error(503, "The request queue is full.", "503")


def invalid(text: str) -> Refusal:
    """The 400 of a body that does not fit its schema."""
    return openai_error(400, f"1 validation error:\n  {text}", "Bad Request")


def missing(*names: str) -> Refusal:
    return invalid(f"Field required: {', '.join(names)}")


def document(path: str, content_type: str, raw: bytes) -> Json:
    """The JSON object in a body."""
    named = content_type.split(";")[0].strip().lower() == "application/json"
    if not named and path.startswith("/v1/"):
        text = "Unsupported Media Type: Only 'application/json' is allowed"
        raise openai_error(400, text, "Bad Request")
    try:
        value = orjson.loads(raw) if named else raw
    except orjson.JSONDecodeError as wrong:
        raise invalid(f"JSON decode error: {wrong.msg}") from None
    if not isinstance(value, dict):
        raise invalid("Input should be a dictionary")
    return value


def _generate(body: Json) -> None:
    if not isinstance(body.get("stream", False), bool):
        raise invalid("Input should be a valid boolean, unable to interpret input")
    for params in as_list(body.get("sampling_params") or {}):
        if type(params.get("n")) not in (int, type(None)):
            raise Refusal(400, {"error": f"invalid type: {params['n']!r}, expected i64"})


def _openai(body: Json, needed: str) -> None:
    if needed not in body:
        raise missing(needed)
    if not isinstance(body.get("n", 1), int | float):
        raise invalid("Input should be a valid integer, unable to parse string as an integer")


SCHEMA: dict[str, Callable[[Json], None]] = {
    "/generate": _generate,
    "/v1/completions": partial(_openai, needed="prompt"),
    "/v1/chat/completions": partial(_openai, needed="messages"),
    "/v1/messages": partial(_openai, needed="messages"),
    "/v1/responses": partial(_openai, needed="input"),
}
"""For each route the check that its body fits, which raises Refusal."""


def ranges(ask: Ask) -> None:
    """What SGLang checks prompt by prompt: sampling parameters and length."""
    for params, prompt in zip(ask.params, ask.prompts, strict=False):
        limit, top_p = params.get("max_new_tokens"), params.get("top_p")
        if top_p is not None and not 0 < top_p <= 1:
            raise Flaw(f"top_p must be in (0, 1], got {top_p}.")
        if limit is not None and limit < 0:
            raise Flaw(f"max_new_tokens must be at least 0, got {limit}.")
        length = len(token_ids(prompt))
        if length >= CONTEXT_LENGTH:
            text = f"The input ({length} tokens) is longer than the model's context length"
            raise Flaw(f"{text} ({CONTEXT_LENGTH} tokens).")


def rids(ask: Ask, busy: set[str]) -> None:
    """Request ids that are no ids, too few, or in use."""
    if isinstance(ask.body.get("rid"), list) and not ask.many and ask.samples == 1:
        raise crash()
    for name in ask.rids():
        if name in busy:
            raise Flaw(f"Duplicate request ID detected: {name}")
