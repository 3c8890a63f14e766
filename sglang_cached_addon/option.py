"""An entry of the settings' table, and how what users write is read.

Pure: knows neither mitmproxy nor click, which both get their options from such entries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Any

SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
"""What units stand for: bytes, and seconds."""

Value = bool | int | float | str | tuple[str, ...]
"""What a flag gives: text also for a number with a unit, a tuple where it can be repeated."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: how it is called, what it is for, and how it is read."""

    default: Value | None
    """The value where none is given; None where one has to be."""
    help: str
    parse: Callable[[Any], Any] = lambda value: value
    """Makes what the program uses of a value that has been checked; raises ValueError."""
    choices: type[StrEnum] | None = None
    bounds: tuple[float, float] | None = None
    """The least and the greatest number."""
    metavar: str | None = None
    flag: str = ""
    """The flag with its dashes, where it does not follow from the name."""
    flag_help: str = ""
    """The help of a flag that means the opposite of the option."""
    short: str = ""
    """The flag in one letter, as `-s`."""
    has_flag: bool = True
    between: str = ""
    """What the option has between several; the flag may be repeated, then."""
    shown: str = ""
    """Its member of `/cache/info`, where that is not the name."""
    is_secret: bool = False
    """Its value is shown nowhere as it was given."""
    attribute: str = ""
    """The name of the field that it stands in."""
    name: str = ""
    """The name of mitmproxy's option."""

    @property
    def type(self) -> type:
        return type(self.default)

    @property
    def is_many(self) -> bool:
        return bool(self.between)

    @property
    def long(self) -> str:
        """The flag with its dashes."""
        name = self.attribute.removesuffix("s") if self.is_many else self.attribute
        return self.flag or f"--{name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"SGLANG_CACHED_{self.long[2:].replace('-', '_').upper()}"

    @property
    def option_help(self) -> str:
        """The help of mitmproxy's option."""
        is_listed = self.between == ","
        return self._more(f"several {'with commas between' if is_listed else 'in a line each'}")

    @property
    def long_help(self) -> str:
        """The help of the flag."""
        return self.flag_help or self._more("may be repeated")

    def _more(self, words: str) -> str:
        return f"{self.help.removesuffix('.')}; {words}." if self.is_many else self.help

    def held(self, given: Value) -> bool | int | str:
        """What mitmproxy holds for what was given with the flag."""
        if isinstance(given, tuple):
            return self.between.join(given)
        if self.long.startswith("--no-"):
            return not given
        return str(given) if isinstance(given, float) else given

    def read(self, held: object) -> Any:
        """What the program uses for what mitmproxy holds; raises ValueError naming the option."""
        value: Any = held if self.type is bool else str(held)
        try:
            if self.choices:
                return _choice(value, self.choices)
            return self.parse(self._number(value, *self.bounds) if self.bounds else value)
        except ValueError as e:
            raise ValueError(f"{self.name}: {e}") from None

    def _number(self, text: str, least: float, most: float) -> float:
        try:
            number = int(text) if self.type is int else float(text)
        except ValueError:
            number = -inf
        if not least <= number <= most:
            wanted = f"a number from {least:g} to {most:g}" if most < inf else f"{least:g} or more"
            raise ValueError(f"{text}: must be {wanted}")
        return number


def _choice(text: str, choices: type[StrEnum]) -> StrEnum:
    if text not in tuple(choices):
        raise ValueError(f"{text}: must be one of {', '.join(choices)}")
    return choices(text)


def option(default: Value | None, help: str, **others: Any) -> Any:
    """An entry, as a field of a dataclass; `others` as `Option` has them."""
    entry = Option(default, help, **others)
    return field(metadata={"option": entry}, repr=not entry.is_secret)


def entries(table: type, prefix: str = "") -> Iterator[Option]:
    """The entries of a dataclass in its order, named as mitmproxy's options with a prefix."""
    for each in fields(table):
        if found := each.metadata.get("option"):
            yield replace(found, attribute=each.name, name=prefix + each.name)


def folder(text: str) -> Path:
    """Reads the path of a folder."""
    if not (path := text.strip()):
        raise ValueError("must name a folder")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as e:
        raise ValueError(f"{path}: {e}") from None


_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)")


def amount(units: Mapping[str, int], empty: float | None) -> Callable[[str], float | None]:
    """Reads a number with a unit; `empty` is what an empty text stands for."""

    def parse(text: str) -> float | None:
        if not text.strip():
            return empty
        found = _AMOUNT.fullmatch(text.strip())
        unit = found[2] if found else "?"
        if units is SIZES:
            unit = unit.upper().removesuffix("B").removesuffix("I")
        if not found or unit not in units or not float(found[1]):
            known = ", ".join(unit for unit in units if unit)
            raise ValueError(f"{text}: must be a number above 0, with a unit ({known}) or none")
        number = float(found[1]) * units[unit]
        return int(number) if number.is_integer() else number

    return parse
