"""What commands print: tables and lines for people, JSON for programs.

What was stored was sent by somebody: no control character of it reaches a terminal. Knows no
command.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import orjson

from sglang_cached_addon.core.printable import printable

PAGE = 100
"""Rows of a table whose columns are as wide as the widest of them."""

NARROWEST, WIDEST = 80, 200
"""Columns of a terminal, where it is not said how many there are, and at most."""

Value = Mapping[str, Any]


class Output:
    """Where a command prints to: the standard output, for people or for programs."""

    def __init__(self, is_json: bool) -> None:
        self.is_json = is_json

    def show(self, value: Value, lines: Iterable[str]) -> None:
        """Prints a value: as JSON, or as lines for people."""
        self.print([orjson.dumps(value).decode()] if self.is_json else lines)

    def list(
        self, values: Iterable[Value], heads: Sequence[str], row: Callable[[Value], Sequence[str]]
    ) -> None:
        """Prints values as they come: each as JSON in a line, or as a `row` of a table."""
        if self.is_json:
            self.print(orjson.dumps(value).decode() for value in values)
            return
        rows = map(row, values)
        while page := list(islice(rows, PAGE)):
            self.print(table(heads, page, terminal_width()))

    def print(self, lines: Iterable[str]) -> None:
        """Prints lines, as they come."""
        for line in lines:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def terminal_width() -> int | None:
    """The columns of the terminal; None where the output is none, so that nothing is cut there."""
    if not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size((NARROWEST, 24)).columns


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> Iterable[str]:
    """The lines of a table. Numbers stand to the right; the last column is cut at the `width`."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    rights = [all(_is_number(text) for text in column) for column in zip(*rows, strict=True)]
    for cells in chain([heads], rows):
        line = "  ".join(
            text.rjust(size) if is_right else text.ljust(size)
            for text, size, is_right in zip(cells, widths, rights, strict=True)
        )
        yield line.rstrip()[:width]


_NUMBER = re.compile(r"-?|\d[\d.]{0,9}( \w+)?")
"""A number with a unit or none, as it is shown; a key is longer."""


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def members(pairs: Iterable[tuple[str, object]]) -> Iterable[str]:
    """Lines with a name and a value each; those without a value are left out."""
    shown = [(name, shown_text(str(value))) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in shown), default=0)
    return (f"{name.ljust(width)}  {value}" for name, value in shown)


def shown_text(text: str, limit: int = WIDEST) -> str:
    """Text that somebody has sent, in one line."""
    return printable(" ".join(text.split()), limit)


def shown_lines(text: str) -> Iterable[str]:
    """Text that somebody has sent, in its lines."""
    return (printable(line, len(line)) for line in text.split("\n"))


def shown_size(count: float) -> str:
    """Bytes, as `1.2 MB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def shown_age(at: float, now: float | None = None) -> str:
    """How long ago a Unix time is, as `3 h`."""
    seconds = max(0.0, (time.time() if now is None else now) - at)
    for unit, size, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < size * most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def shown_time(at: float) -> str:
    """A Unix time on this machine's clock, as `2026-11-27 02:39:04`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
