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
_KINDS: dict[str, type] = {"text": str, "rid": str, "sampling_params": dict}
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


def none_of(path: str, body: Json, name: str, *types: str) -> Refusal:
    """The 400 of a field that has none of the types it may have."""
    flaws = []
    for label in types:
        noun = {"str": "string"}.get(label, label.split("[")[0])
        text = f"Input should be a valid {noun}"
        flaws.append(flaw(f"{noun}_type", (name, label), text, body[name]))
    return invalid(path, *flaws)


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


def _whole(path: str, body: Json, name: str) -> None:
    """An integer field of a /v1 route; numerals and whole floats are taken."""
    value = body.get(name, 0)
    text = "Input should be a valid integer"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return
    if not isinstance(value, str):
        raise invalid(path, flaw("int_type", (name,), text, value))
    try:
        int(value)
    except ValueError:
        text += ", unable to parse string as an integer"
        raise invalid(path, flaw("int_parsing", (name,), text, value)) from None


def _is_list_of(value: Any, items: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(item, items) for item in value)


def _generate(path: str, body: Json) -> None:
    if not isinstance(body.get("stream", False), bool):
        text = "Input should be a valid boolean, unable to interpret input"
        raise invalid(path, flaw("bool_parsing", ("stream",), text, body["stream"]))
    for name, kind in _KINDS.items():
        value = body.get(name)
        if not (value is None or isinstance(value, kind) or _is_list_of(value, kind)):
            raise none_of(path, body, name, kind.__name__, f"list[{kind.__name__}]")
    each = body.get("sampling_params") or {}
    for params in as_list(each):
        for name, value in params.items():
            _check_param(name, value)
    texts = body.get("text") if body.get("input_ids") is None else body["input_ids"]
    many = isinstance(texts, list) and not (texts and isinstance(texts[0], int))
    if isinstance(each, list) and (not many or len(each) < len(texts)):
        raise crash()
    if any(params.get("n", 1) is None for params in as_list(each)):
        raise crash()


def _check_param(name: str, value: Any) -> None:
    if name not in _SAMPLING_FIELDS:
        expected = ", ".join(f"`{known}`" for known in _SAMPLING_FIELDS)
        raise Refusal(400, {"error": f"unknown field `{name}`, expected one of {expected}"})
    if name in ("n", "max_new_tokens") and type(value) not in (int, type(None)):
        told = {str: "string {}", float: "floating point `{}`"}.get(type(value), "`{}`")
        given = told.format(orjson.dumps(value).decode())
        raise Refusal(400, {"error": f"invalid type: {given}, expected i64"})


def _openai(path: str, body: Json, limit: str) -> None:
    if body.get(limit) is not None or limit == "max_tokens":
        _whole(path, body, limit)
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        text = "Input should be a valid dictionary or object to extract fields from"
        raise invalid(path, flaw("model_attributes_type", ("stream_options",), text, options))
    _whole(path, body, "n")


def _completions(path: str, body: Json) -> None:
    if "prompt" not in body:
        raise missing(path, body, "prompt")
    prompt = body["prompt"]
    if not (isinstance(prompt, str) or _is_list_of(prompt, (str, int, list))):
        raise none_of(path, body, "prompt", "list[int]", "list[list[int]]", "str", "list[str]")
    _openai(path, body, "max_tokens")
    if int(body.get("max_tokens", 1)) <= 0:
        text = "Value error, max_tokens must be positive"
        raise invalid(path, flaw("value_error", ("max_tokens",), text, int(body["max_tokens"])))


def _chat(path: str, body: Json) -> None:
    if "messages" not in body:
        raise missing(path, {**body, "tool_choice": body.get("tool_choice", "none")}, "messages")
    if not _is_list_of(body["messages"], dict):
        text = "Input should be a valid list"
        raise invalid(path, flaw("list_type", ("messages",), text, body["messages"]))
    name = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    _openai(path, {k: v for k, v in body.items() if k != name or v is not None}, name)


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
    rid = ask.body.get("rid")
    if isinstance(rid, list):
        if not ask.many and ask.samples == 1:
            text = "Internal server error: unhashable type: 'list'"
            raise openai_error(500, text, "InternalServerError")
        if len(rid) != len(ask.prompts):
            text = "The specified rids length mismatch with the batch_size for batch processing."
            raise Flaw(text)
        twice = sorted({one for one in rid if rid.count(one) > 1})
        if twice:
            raise Flaw(f"Duplicate request IDs detected within the request: {twice}")
    for name in ask.rids():
        if name in busy:
            raise Flaw(f"Duplicate request ID detected: {name}")
