"""How people see the bodies of an API: the parts of a request and of an answer, in words.

Pure. What a dialect's own `Display` is to tell, and what the dialects share for that; `rendering`
makes lines of it. A body may be anything that is JSON, and a stream may be cut or have a gap:
nothing here raises for what it does not understand, but shows it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

MAX_TEXT = 20_000
"""How many characters of one text are shown."""

MAX_VALUE = 300
"""How many characters of a value in a line are shown."""

GAP = " [...] "
"""Stands where events of a stream are left out."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a body: its heading, facts that stand beside that, and its text."""

    heading: str
    text: str = ""
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """One sample of an answer."""

    index: int
    """Its place in the answer."""
    text: str
    facts: tuple[str, ...] = ()
    """How it has ended, how many tokens it has, and the like."""


class AnswerReader(Protocol):
    """Takes an answer: the events of a stream, or a JSON answer as the only one."""

    def add(self, event: Any) -> None:
        """Takes the parsed data of the next event, whatever that is."""

    def skip(self) -> None:
        """Events are left out here."""

    def facts(self) -> list[str]:
        """What the answer says of itself as a whole."""

    def samples(self) -> list[Shown]:
        """The samples so far."""


class Display(Protocol):
    """How people see the bodies of one API."""

    @property
    def spoken(self) -> Sequence[str]:
        """The fields of a request that its passages show; all others are shown as a table."""

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        """What a request says to the model."""

    def reader(self) -> AnswerReader:
        """A reader of one answer."""


def display_of(dialect: object) -> Display:
    """The display of a dialect, its optional member `display`; a general one where it has none."""
    found: Display = getattr(dialect, "display", GENERAL)
    return found


class _General:
    """For what has no display of its own: all of it is a table, or JSON."""

    spoken = ()

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        return []

    def reader(self) -> AnswerReader:
        return _GeneralReader()


class _GeneralReader:
    """Shows each event as it is."""

    def __init__(self) -> None:
        self._samples: list[Shown] = []

    def add(self, event: Any) -> None:
        self._samples.append(Shown(len(self._samples), written(event, indented=True)))

    def skip(self) -> None:
        self._samples.append(Shown(len(self._samples), GAP))

    def facts(self) -> list[str]:
        return []

    def samples(self) -> list[Shown]:
        return self._samples


GENERAL: Display = _General()


# What displays share


def written(value: Any, *, indented: bool = False) -> str:
    """A value as JSON; text as it is."""
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indented else None).decode()
    except TypeError:  # it could be read, but is nested too deep to be written
        return "(nested too deep)"


def shortened(text: str, limit: int = MAX_VALUE) -> str:
    """A text of at most about so many characters: of a longer one, its begin and its end."""
    left_out = len(text) - limit
    if left_out <= 0:
        return text
    head = limit * 3 // 4
    return (
        f"{text[:head]} [... {left_out:,} more characters ...] {text[len(text) - limit + head :]}"
    )


def members(value: Any) -> dict[str, Any]:
    """The members of an object; none of anything else."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """The members of a list; none of anything else."""
    return value if isinstance(value, list) else []


def parted(thought: str, said: str, calls: Sequence[str]) -> str:
    """What a sample says, with what it thinks and what it calls told apart from that."""
    parts = [("reasoning", thought), ("answer", said), ("tool calls", "\n".join(calls))]
    found = [(label, text) for label, text in parts if text]
    if [label for label, _ in found] == ["answer"]:
        return said
    return "\n\n".join(f"({label})\n{text}" for label, text in found)


def prompts(name: str, value: Any, heading: str = "prompt") -> list[Passage]:
    """The prompts of a field, one or a list of them; `name` is what those consist of that are no
    texts."""
    each = value if isinstance(value, list) and not _is_one(value) else [value]
    total = len(each)
    return [
        Passage(
            heading if total == 1 else f"{heading} {i + 1} of {total}",
            said if isinstance(said, str) else shortened(written(said), MAX_TEXT),
            (f"{len(said)} {name}",) if _is_of_parts(said) else (),
        )
        for i, said in enumerate(each)
    ]


def _is_of_parts(prompt: Any) -> bool:
    """Whether a prompt consists of token ids, or of vectors: not of texts, as a pair does."""
    return isinstance(prompt, list) and not any(isinstance(part, str | dict) for part in prompt)


def _is_one(prompt: list[Any]) -> bool:
    """Whether a list is one prompt: of token ids, or of the vectors in their place."""
    first = prompt[0] if prompt else None
    return type(first) is int or (
        isinstance(first, list) and bool(first) and type(first[0]) is float
    )


def told(facts: dict[str, Any]) -> list[str]:
    """Facts as words, without those that there are not."""
    return [
        f"{name} {shortened(written(value))}" for name, value in facts.items() if value is not None
    ]
