"""The requests that are sent: bodies with a number in them, so that one call makes many.

Pure values. The number is ten digits wide, in a JSON string, so that every body of a call
has the same length and neither its JSON nor its canonical form changes with the number.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson

MARK = "##########"
"""Where the number goes."""


def numbered(template: str, number: int) -> bytes:
    """The template's bytes with the number in place of the mark."""
    return template.replace(MARK, f"{number:0{len(MARK)}d}").encode()


@dataclass(frozen=True, slots=True)
class Call:
    """A POST request with a number to be filled in."""

    path: str
    template: str

    def body(self, number: int) -> bytes:
        return numbered(self.template, number)


def prompt(length: int) -> str:
    """A prompt of so many bytes that begins with the mark."""
    words = " Please say in a few words what the sea is, and why its water is salty."
    return (MARK + words * (length // len(words) + 1))[:length]


def generate(length: int, n: int | None = None) -> Call:
    """A call of SGLang's own API."""
    params: dict[str, object] = {"temperature": 0.7, "max_new_tokens": 8}
    if n is not None:
        params["n"] = n
    body = {"text": prompt(length), "sampling_params": params}
    return Call("/generate", orjson.dumps(body).decode())


def chat_stream(
    events: int,
    interval_ms: float = 5,
    *,
    is_stream: bool = True,
    is_stored: bool = True,
    has_usage: bool = True,
) -> Call:
    """A call of OpenAI's API that the stub answers with so many events, so far apart.

    Not `is_stored`: no cache looks at it. Not `has_usage`: its answer is recorded, and cannot
    be stored in the end."""
    body: dict[str, object] = {
        "model": "stub",
        "messages": [{"role": "user", "content": prompt(100)}],
        "max_tokens": events,
        "interval_ms": interval_ms,
        "has_usage": has_usage,
        "stream": is_stream,
    }
    if not is_stored:
        body["return_hidden_states"] = True
    return Call("/v1/chat/completions", orjson.dumps(body).decode())


SMALL = generate(100)
LARGE = generate(16 * 1024)
FOUR = generate(100, n=4)
