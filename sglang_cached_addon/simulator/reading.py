"""What reading a request has in common on all routes; raises Refusal or Flaw.

Pure but for new ids.
"""

from __future__ import annotations

import uuid
from typing import Any

import orjson

from sglang_cached_addon.simulator.profile import CONTEXT_LENGTH, Json
from sglang_cached_addon.simulator.refusals import Flaw, flaw, invalid, openai_error
from sglang_cached_addon.simulator.sample import Ask
from sglang_cached_addon.simulator.words import token_ids


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


def whole(path: str, body: Json, name: str, default: int) -> int:
    """An integer field of a /v1 route; numerals and whole floats are taken."""
    value = body.get(name, default)
    text = "Input should be a valid integer"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if not isinstance(value, str):
        raise invalid(path, flaw("int_type", (name,), text, value))
    try:
        return int(value)
    except ValueError:
        text += ", unable to parse string as an integer"
        raise invalid(path, flaw("int_parsing", (name,), text, value)) from None


def list_of(value: Any, items: type | tuple[type, ...]) -> bool:
    return isinstance(value, list) and all(isinstance(item, items) for item in value)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def check_ranges(ask: Ask) -> None:
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


def rids(ask: Ask) -> list[str]:
    """One request id per sample; the client's only where SGLang keeps it."""
    rid = ask.body.get("rid")
    total = len(ask.prompts) * ask.samples
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
    if rid is None or ask.samples > 1:
        return [uuid.uuid4().hex for _ in range(total)]
    if isinstance(rid, list):
        return rid
    return [f"{rid}_{place}" for place in range(total)] if ask.many else [rid]
