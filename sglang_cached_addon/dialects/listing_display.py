"""How people see calls of APIs that generate nothing, and the answer to each of their rows.

Pure. A body may be anything that is JSON. Of many numbers the first are shown, with a digest of all
of them, so that two answers which differ look different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from sglang_cached_addon.dialects import vectors
from sglang_cached_addon.dialects.display import (
    Passage,
    Shown,
    listed,
    members,
    prompts,
    shortened,
    told,
    written,
)

MOST_NUMBERS = 24
"""Of more numbers than these only the first are shown."""

FIRST_NUMBERS = 6

Rows = Iterable[tuple[Any, str]]
"""What is said of rows, each with the place that the answer names, if that is a number."""


@dataclass(frozen=True, slots=True)
class ListDisplay:
    """The `Display` of such an API."""

    spoken: Sequence[str]
    rows: Callable[[Any], Rows]
    """Gives the rows of an answer."""

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        given = ((name, body.get(name)) for name in self.spoken)
        return [
            passage
            for name, value in given
            if value is not None
            for passage in _passages(name, value)
        ]

    def reader(self) -> Reader:
        return Reader(self.rows)


class Reader:
    """An `AnswerReader` of rows."""

    def __init__(self, rows: Callable[[Any], Rows]) -> None:
        self._rows = rows
        self._shown: list[Shown] = []
        self._head: dict[str, Any] = {}

    def add(self, event: Any) -> None:
        for k, (place, text) in enumerate(self._rows(event)):
            self._shown.append(Shown(place if type(place) is int else k, text))
        answer = members(event)
        usage = members(answer.get("usage"))
        self._head = {"model": answer.get("model"), "prompt tokens:": usage.get("prompt_tokens")}

    def skip(self) -> None:
        """Such an answer is never streamed."""

    def facts(self) -> list[str]:
        return told(self._head)

    def samples(self) -> list[Shown]:
        return self._shown


def _passages(name: str, value: Any) -> list[Passage]:
    if name != "messages":
        return prompts("token ids", value, name)
    return [_message(members(each), each) for each in listed(value)]


def _message(message: dict[str, Any], value: Any) -> Passage:
    return Passage(written(message.get("role", "message")), written(message.get("content", value)))


# The rows of answers


def of_data(say: Callable[[dict[str, Any]], str]) -> Callable[[Any], Rows]:
    """Those that stand in `data`, as OpenAI's APIs have them."""

    def rows(answer: Any) -> Rows:
        found = map(members, listed(members(answer).get("data")))
        return [(row.get("index"), say(row)) for row in found]

    return rows


def of_list(say: Callable[[dict[str, Any]], str]) -> Callable[[Any], Rows]:
    """Those of a list, or the only one."""

    def rows(answer: Any) -> Rows:
        found = map(members, answer if isinstance(answer, list) else [answer])
        return [(row.get("index"), say(row)) for row in found]

    return rows


def of_answers(answer: Any) -> Rows:
    """Those to questions, by their names."""
    found = members(members(answer).get("answers"))
    return [(None, f"{name}: {written(said)}") for name, said in found.items()]


# What is said of one


def vector(row: dict[str, Any]) -> str:
    """A vector: how long it is, and how it begins."""
    kept = row.get("embedding")
    if isinstance(kept, str) and vectors.is_readable(kept):
        kept = vectors.unpack(kept)
    return numbers(kept)


def numbers(value: Any, what: str = "numbers") -> str:
    """Numbers, or what stands in their place."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float}:
        return _noted(value)
    if len(value) <= MOST_NUMBERS:
        return f"{len(value)} {what}: {written(value)}"
    begin = written(value[:FIRST_NUMBERS])[:-1]
    return f"{len(value):,} {what}: {begin}, ...] (digest {_digest(value)})"


def _noted(value: Any) -> str:
    text = written(value)
    short = shortened(text)
    return text if short == text else f"{short} (digest {_digest(value)})"


def _digest(value: Any) -> str:
    return blake2b(written(value).encode(), digest_size=4).hexdigest()
