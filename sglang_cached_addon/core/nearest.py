"""Which stored call is nearest to one that is not stored, and what differs: for people.

Pure. Calls are compared as canonical JSON, member by member; the nearest is the one that differs
in the fewest places, and of several the one whose texts agree the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from sglang_cached_addon.core.outcome import SHOWN

MAX_SHOWN = 5
"""How many differences are told."""

MAX_TEXT = 60
"""How many characters of a value are told."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two calls differ; an absent value is `ABSENT`."""

    place: str
    asked: Any
    stored: Any


ABSENT = orjson.Fragment("nothing")


def sentence(
    asked: bytes,
    dialect: str,
    model: bytes,
    calls: Iterable[tuple[bytes, str, bytes]],
    *,
    with_values: bool,
) -> str:
    """What is nearest to a call (its canonical content), of the stored ones: key, dialect and
    content of each. `model` is how keys of the present model begin. Without values, only the
    places are told."""
    wanted = orjson.loads(asked)
    best: tuple[tuple[int, int, bool], bytes, list[Difference]] | None = None
    for key, name, content in calls:
        if name != dialect:
            continue
        found = list(differences(wanted, orjson.loads(content)))
        rank = (len(found), -sum(map(_agreement, found)), not key.startswith(model))
        if best is None or rank < best[0]:
            best = rank, key, found
    if best is None:
        return "Nothing is stored for this API."
    (_, _, is_foreign), key, found = best
    text = f"The nearest stored call (key {key[:SHOWN].hex()})"
    if not found:
        whose = "of another model or credential" if is_foreign else "with too few samples"
        return f"{text} is the same, but {whose}."
    told = "; ".join(_told(difference, with_values) for difference in found[:MAX_SHOWN])
    more = f"; and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    return f"{text} differs in {told}{more}."


def differences(asked: Any, stored: Any, place: str = "") -> Iterator[Difference]:
    """Where two JSON values differ, from the outside in."""
    if isinstance(asked, dict) and isinstance(stored, dict):
        for name in dict.fromkeys((*asked, *stored)):
            inner = f"{place}.{name}" if place else name
            yield from differences(asked.get(name, ABSENT), stored.get(name, ABSENT), inner)
    elif isinstance(asked, list) and isinstance(stored, list):
        for i, (one, other) in enumerate(zip_longest(asked, stored, fillvalue=ABSENT)):
            yield from differences(one, other, f"{place}[{i}]")
    elif type(asked) is not type(stored) or asked != stored:
        yield Difference(place or "the whole", asked, stored)


def _agreement(difference: Difference) -> int:
    """How many characters two texts begin with alike."""
    asked, stored = difference.asked, difference.stored
    if not (isinstance(asked, str) and isinstance(stored, str)):
        return 0
    pairs = enumerate(zip(asked, stored, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(asked), len(stored)))


def _told(difference: Difference, with_values: bool) -> str:
    if not with_values:
        return difference.place
    asked, stored = _shown(difference.asked), _shown(difference.stored)
    return f"{difference.place} (asked {asked}, stored {stored})"


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
