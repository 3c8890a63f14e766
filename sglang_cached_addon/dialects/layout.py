"""How parts of a body are laid out as lines: headings, texts and tables.

Pure, and bounded: of many parts the first and the last are shown, and so it is with long texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

import orjson

from sglang_cached_addon.dialects.display import MAX_TEXT, Passage, shortened, written

MAX_PASSAGES = 100
"""How many prompts, messages or samples are shown."""

MAX_SHOWN = 400_000
"""How many characters of text are shown in all."""

RULE, WIDTH = 72, 84
"""How wide a heading is at least, and a line at most: nobody breaks the lines of a view."""


SEPARATOR = " · "


class Style(StrEnum):
    """What a line is, in mitmproxy's words."""

    HEADER = "header"
    TEXT = "text"
    ERROR = "error"


Line = tuple[Style, str]


def opening(name: str, facts: Iterable[str], said: Sequence[str]) -> Iterator[Line]:
    """What stands above all else: what the cache said, and what the body is of."""
    if said:
        yield from _facts([f"cache: {said[0]}", *said[1:]])
    yield from _facts([name, *facts])


def _facts(facts: Iterable[str]) -> Iterator[Line]:
    """Facts in as few lines as they need, each in one piece."""
    line = ""
    for fact in map(_in_one, facts):
        if line and len(line) + len(SEPARATOR) + len(fact) > WIDTH:
            yield Style.HEADER, line
            line = f"  {fact}"
        else:
            line = f"{line}{SEPARATOR}{fact}" if line else fact
    yield Style.HEADER, line


def passages(found: Sequence[Passage]) -> Iterator[Line]:
    """Passages one under the other; of many, the first and the last."""
    left_out = len(found) - MAX_PASSAGES
    left = MAX_SHOWN
    for k, passage in enumerate(found):
        if left_out > 0 and MAX_PASSAGES // 2 <= k < MAX_PASSAGES // 2 + left_out:
            if k == MAX_PASSAGES // 2:
                yield from heading(Passage(f"{left_out:,} more are not shown"))
            continue
        yield from heading(passage)
        text = shortened(passage.text, min(MAX_TEXT, max(left, 200)))
        left -= len(text)
        yield from lines(text)


def heading(passage: Passage) -> Iterator[Line]:
    yield Style.TEXT, ""
    line = f"── {_joined([passage.heading, *passage.facts])} "
    yield Style.HEADER, line.ljust(RULE, "─")


def table(value: dict[str, Any]) -> Iterator[Line]:
    """Fields and their values; those of an object within have its name before theirs."""
    rows: list[tuple[str, Any]] = []
    for name, member in value.items():
        if isinstance(member, dict) and member:
            rows += [(f"{name}.{inner}", each) for inner, each in member.items()]
        else:
            rows.append((name, member))
    shown = [(shortened(name), _in_line(each)) for name, each in rows[:MAX_PASSAGES]]
    width = min(40, max(len(name) for name, _ in shown))
    for name, each in shown:
        yield Style.TEXT, f"{name.ljust(width)}  {each}"
    if len(rows) > MAX_PASSAGES:
        yield Style.TEXT, f"{len(rows) - MAX_PASSAGES:,} more are not shown"


def _in_line(value: Any) -> str:
    """A value in one line; text in quotes, so that its ends are seen."""
    if isinstance(value, str):
        return orjson.dumps(shortened(value)).decode()
    return shortened(written(value))


def lines(text: str) -> Iterator[Line]:
    """The lines of a text. Long ones are broken behind a space; joined, they are as before."""
    for line in text.splitlines():
        at = 0
        while len(line) - at > WIDTH:
            end = line.rfind(" ", at + 1, at + WIDTH) + 1 or at + WIDTH
            yield Style.TEXT, line[at:end]
            at = end
        yield Style.TEXT, line[at:]


def _joined(facts: Iterable[str]) -> str:
    """Facts in a line."""
    return SEPARATOR.join(map(_in_one, facts))


def _in_one(fact: str) -> str:
    """A fact without line breaks, and not too long."""
    return " ".join(shortened(fact).split())
