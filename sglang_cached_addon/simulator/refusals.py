"""What is said instead of samples, in SGLang's words.

`Refusal` is a finished answer. `Flaw` is a wrong value; each route tells it in its own manner.
"""

from __future__ import annotations

import orjson

from sglang_cached_addon.simulator.profile import Json


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


def openai_error(status: int, message: str, kind: str) -> Refusal:
    body = {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    return Refusal(status, body)


def error_event(message: str) -> bytes:
    """An error that is told in a stream of /generate."""
    error = {"message": message, "type": "invalid_request_error", "code": 400}
    return orjson.dumps({"error": {**error, "retryable": False}})
