"""What SGLang refuses, in its words: bodies that do not fit their schema, values out of range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json
from sglang_cached_addon.simulator.refusals import Flaw, Refusal, crash, openai_error
from sglang_cached_addon.simulator.sample import Ask
from sglang_cached_addon.simulator.words import as_list, token_ids

_WHERE = {  # SGLang names the place of a validation error in its own source
    "/generate": "line 928, in generate_request",
    "/v1/completions": "line 1860, in openai_v1_completions",
    "/v1/chat/completions": "line 1870, in openai_v1_chat_completions",
}
_FIELD_NAMES = (
    "max_new_tokens stop stop_token_ids stop_regex temperature top_p top_k min_p frequency_penalty "
    "presence_penalty repetition_penalty min_new_tokens n json_schema regex ebnf structural_tag "
    "ignore_eos skip_special_tokens spaces_between_special_tokens no_stop_trim stream_interval "
    "logit_bias sampling_seed custom_params beam_width watermark choice"
)
_SAMPLING_FIELDS = _FIELD_NAMES.split()


def busy() -> Refusal:
    return openai_error(503, "The request queue is full.", "503")


def invalid(path: str, *flaws: Json) -> Refusal:
    """The 400 of a body that does not fit its schema."""
    head = f"{len(flaws)} validation error{'s' if len(flaws) > 1 else ''}:\n"
    text = head + "\n".join(f"  {flaw}" for flaw in flaws)
    if path in _WHERE:
        place = f'File "sglang/srt/entrypoints/http_server.py", {_WHERE[path]}'
        text += f"\n\n  {place}\n    POST {path} {[*flaws]}"
    return openai_error(400, text, "Bad Request")


def flaw(kind: str, loc: tuple[Any, ...], text: str, given: Any) -> Json:
    return {"type": kind, "loc": ("body", *loc), "msg": text, "input": given}


def missing(path: str, body: Json, *names: str) -> Refusal:
    return invalid(path, *(flaw("missing", (name,), "Field required", body) for name in names))


def document(path: str, content_type: str, raw: bytes) -> Json:
    """The JSON object in a body."""
    named = content_type.split(";")[0].strip().lower() == "application/json"
    if not named and path.startswith("/v1/"):
        text = "Unsupported Media Type: Only 'application/json' is allowed"
        raise openai_error(400, text, "Bad Request")
    try:
        value = orjson.loads(raw) if named else raw
    except orjson.JSONDecodeError as wrong:
        found = flaw("json_invalid", (wrong.pos,), "JSON decode error", {})
        raise invalid(path, {**found, "ctx": {"error": wrong.msg}}) from None
    if not isinstance(value, dict):
        raise invalid(path, flaw("dataclass_type", (), "Input should be a dictionary", value))
    return value


def _generate(path: str, body: Json) -> None:
    if not isinstance(body.get("stream", False), bool):
        text = "Input should be a valid boolean, unable to interpret input"
        raise invalid(path, flaw("bool_parsing", ("stream",), text, body["stream"]))
    for params in as_list(body.get("sampling_params") or {}):
        for name, value in params.items():
            if name not in _SAMPLING_FIELDS:
                expected = ", ".join(f"`{known}`" for known in _SAMPLING_FIELDS)
                text = f"unknown field `{name}`, expected one of {expected}"
                raise Refusal(400, {"error": text})
            if name == "n" and type(value) not in (int, type(None)):
                told = {str: "string {}", float: "floating point `{}`"}.get(type(value), "`{}`")
                given = told.format(orjson.dumps(value).decode())
                raise Refusal(400, {"error": f"invalid type: {given}, expected i64"})


def _openai(path: str, body: Json, needed: str, given: Json) -> None:
    if needed not in body:
        raise missing(path, {**body, **given}, needed)
    n = body.get("n", 1)
    if not isinstance(n, int | float):
        raise invalid(path, flaw("int_parsing", ("n",), _NO_INTEGER, n))


def _completions(path: str, body: Json) -> None:
    _openai(path, body, "prompt", {})


def _chat(path: str, body: Json) -> None:
    _openai(path, body, "messages", {"tool_choice": body.get("tool_choice", "none")})


_NO_INTEGER = "Input should be a valid integer, unable to parse string as an integer"

SCHEMA: dict[str, Callable[[str, Json], None]] = {
    "/generate": _generate,
    "/v1/completions": _completions,
    "/v1/chat/completions": _chat,
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
