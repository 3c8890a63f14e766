"""What people want to see of what is stored: which entries, and how many at a time.

Pure. Reads the query of a URL, and nothing of what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from sglang_cached_addon.option import TIMES

LIMIT, MOST = 50, 1000
"""How many entries are shown at a time, unless somebody wants it otherwise, and at most."""

LEAST_PREFIX = 4
"""The hexadecimal digits that an entry's key is named by at least."""

_LEAST_TIME = 1e9
"""A number below this is an age: as a time it would be before September 2001."""

_AGE = re.compile(rf"(\d+(?:\.\d+)?)([{''.join(TIMES)}]?)")


class BadQuery(ValueError):
    """What is asked says nothing that is understood."""


class NotFound(LookupError):
    """There is no such thing."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which entries somebody wants to see."""

    model: str = "all"
    """`current`, `other`, `all`, or the name of a model."""
    api: str = ""
    """The name of a dialect; empty for all."""
    text: str = ""
    """What stands in the prompt or in an answer, whatever its case."""
    since: float = -inf
    """When its newest sample was stored at the earliest: Unix seconds."""
    until: float = inf
    """When it was stored at the latest."""
    run: str = ""
    """The name of a run that has used it; empty for all."""
    limit: int = LIMIT
    cursor: str = ""
    """Where an earlier page has ended; empty for the first one."""

    @classmethod
    def read(cls, pairs: Iterable[tuple[str, str]], now: float) -> Query:
        """The members of a URL's query, at this Unix time. Raises BadQuery; an empty value is
        none."""
        given = dict(pairs)
        if odd := given.keys() - _READ.keys():
            raise BadQuery(f"{', '.join(sorted(odd))}: takes {', '.join(_READ)}")
        given = {name: value for name, value in given.items() if value}
        members: dict[str, Any] = {
            name: read(given[name], now) for name, read in _READ.items() if name in given
        }
        return cls(**members)


def _text(text: str, now: float) -> str:
    return text


def _time(text: str, now: float) -> float:
    """A time: Unix seconds, or how long ago it was."""
    found = _AGE.fullmatch(text)
    if not found:
        raise BadQuery(f"{text[:80]}: takes Unix seconds, or an age as 90s, 30m, 12h, 7d or 2w")
    number, unit = float(found[1]), found[2]
    return number if not unit and number >= _LEAST_TIME else now - number * TIMES[unit]


def _limit(text: str, now: float) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST):
        raise BadQuery(f"{text[:80]}: takes a number from 1 to {MOST}")
    return int(text)


_READ: dict[str, Callable[[str, float], Any]] = {
    "model": _text,
    "api": _text,
    "text": _text,
    "since": _time,
    "until": _time,
    "run": _text,
    "limit": _limit,
    "cursor": _text,
}


def key_prefix(text: str) -> str:
    """The beginning of a key, in lower case. Raises BadQuery for what is none."""
    text = text.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{LEAST_PREFIX},64}}", text):
        raise BadQuery(f"{text[:80]}: a key is {LEAST_PREFIX} to 64 hexadecimal digits")
    return text
