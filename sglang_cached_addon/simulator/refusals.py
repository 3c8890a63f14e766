"""What is said instead of samples, in SGLang's words.

`Refusal` is a finished answer. `Flaw` is a wrong value; each route tells it in its own manner.
`invalid` and `flaw` build the 400 of a body that does not fit its schema.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from sglang_cached_addon.simulator.profile import Json

_WHERE = {  # SGLang names the place of a validation error in its own source
    "/generate": "line 928, in generate_request",
    "/v1/completions": "line 1860, in openai_v1_completions",
    "/v1/chat/completions": "line 1870, in openai_v1_chat_completions",
}


class Refusal(Exception):
    """A finished answer in place of samples."""

    def __init__(self, status: int, body: Json | bytes) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Flaw(ValueError):
    """A wrong value; the route decides how it is told to the client."""

    def __init__(self, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.kind = kind


def crash() -> Refusal:
    return Refusal(500, b"Internal Server Error")


def busy() -> Refusal:
    return openai_error(503, "The request queue is full.", "503")


def openai_error(status: int, message: str, kind: str) -> Refusal:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return Refusal(status, body)


def error_event(path: str, message: str) -> bytes:
    """An error told in a stream: of the request in /generate, else of the server."""
    if path == "/generate":
        error = {"message": message, "type": "invalid_request_error", "code": 400}
        return orjson.dumps({"error": {**error, "retryable": False}})
    body = openai_error(503, message, "SERVICE_UNAVAILABLE").body
    return json.dumps({"error": body}).encode()  # with spaces, as SGLang has it


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
