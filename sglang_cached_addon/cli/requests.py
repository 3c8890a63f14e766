"""Calls that are written down: one in a file, or one a line.

Three ways of writing are understood: `{"path": ..., "body": {...}}`, a line of a file for OpenAI's
batch API (`{"custom_id": ..., "method": "POST", "url": ..., "body": {...}}`), and the body by
itself, whose path is guessed from its members where none is given. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

_PATHS = {
    "documents": "/v1/rerank",
    "label_token_ids": "/v1/score",
    "state": "/v1/systemone",
    "questions": "/v1/decisions",
    "tokens": "/v1/detokenize",
    "max_output_tokens": "/v1/responses",
    "instructions": "/v1/responses",
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "text": "/generate",
    "input_ids": "/generate",
    "input_embeds": "/generate",
    "sampling_params": "/generate",
}
"""The path of a body that has this member: that of the first of them. One that has an `input` may
be for several."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call that is to be sent as it stands."""

    path: str
    body: bytes
    name: str = ""
    """What the file calls it; empty where it has no name."""


def read(raw: bytes, path: str = "") -> Request:
    """What is written down; `path` is that of a body by itself. Raises ValueError with what is
    wrong."""
    try:
        value = orjson.loads(raw)
    except ValueError as e:
        raise ValueError(f"not JSON: {e}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    named = value.get("path", value.get("url"))
    if isinstance(value.get("body"), dict) and isinstance(named, str):
        return _of_wrapped(value, named)
    if path or (path := _guessed(value)):
        return Request(path, raw.strip())
    known = ", ".join(_PATHS)
    raise ValueError(f"its path cannot be guessed, as it has none of {known}: name it with --path")


def _of_wrapped(value: dict[str, Any], path: str) -> Request:
    if str(value.get("method", "POST")).upper() != "POST":
        raise ValueError(f"method {value['method']}: only POST has a body that is cached")
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is no path: it has to begin with /")
    name = value.get("custom_id", "")
    return Request(path, orjson.dumps(value["body"]), name if isinstance(name, str) else "")


def _guessed(body: dict[str, Any]) -> str:
    return next((path for member, path in _PATHS.items() if member in body), "")
