"""Which stored calls are nearest to one that is not stored, and what differs: for people.

Pure. Calls are compared as canonical JSON, member by member; the nearest is the one that differs
in the fewest places, of several the one whose texts begin alike for the longest, and then the one
whose texts have the least between that and what they end with alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any

import orjson

from sglang_cached_addon.core.outcome import SHOWN

MAX_SHOWN = 5
"""How many differences are told in a sentence."""

MAX_TEXT = 60
"""How many characters of a value are told there."""

MAX_CALLS = 5
"""How many stored calls are told of."""

MAX_DIFFERENCES = 50
"""How many differences of each are listed."""

MAX_VALUE = 400
"""How many characters of a value are listed."""

_COUNTED = 1000
"""Calls that differ in as many places, or more, are equally far."""

_BYTES = 1 << 20
"""So many bytes of stored calls are compared, and at least one call."""

StoredCall = tuple[bytes, str, bytes]
"""The key, dialect and canonical content of a call that is stored."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two calls differ; an absent value is `ABSENT`."""

    place: str
    asked: Any
    stored: Any

    def as_json(self) -> dict[str, Any]:
        """What is absent is absent there, too. Long values are cut to where they differ."""
        at, found = max(0, _agreement(self) - MAX_VALUE // 4), {"at": self.place}
        for name, value in (("asked", self.asked), ("stored", self.stored)):
            if value is not ABSENT:
                found[name] = _cut(value, at)
        return found


ABSENT = orjson.Fragment("nothing")


@dataclass(frozen=True, slots=True)
class Near:
    """A stored call, and where another one differs from it."""

    key: bytes
    differences: Sequence[Difference]
    is_same_model: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key.hex(),
            "differences": [one.as_json() for one in self.differences[:MAX_DIFFERENCES]],
            "is_same_model": self.is_same_model,
        }


def nearest(asked: bytes, model: bytes, calls: Iterable[StoredCall]) -> list[Near]:
    """The stored calls that are nearest to a call (its canonical content), of those that are given,
    which are of the same API, the likeliest first. `model` is how keys of the present model
    begin."""
    wanted, size = orjson.loads(asked), 0
    found: list[tuple[tuple[int, int, int, bool], Near]] = []
    for key, _, content in calls:
        if (size := size + len(content)) > _BYTES and found:
            break
        places = list(islice(differences(wanted, orjson.loads(content)), _COUNTED))
        near = Near(key, places, key.startswith(model))
        agreement, rest = sum(map(_agreement, places)), sum(map(_rest, places))
        rank = (len(places), -agreement, rest, not near.is_same_model)
        found.append((rank, near))
    return [near for _, near in sorted(found, key=lambda pair: pair[0])[:MAX_CALLS]]


def sentence(found: Sequence[Near], key: bytes, *, with_values: bool) -> str:
    """What is nearest to the call of a key, in words. Without values, only the places are told."""
    if not found:
        return "Nothing is stored for this API."
    near = found[0]
    text = f"The nearest stored call (key {near.key[:SHOWN].hex()})"
    if not near.differences:
        whose = "with too few samples" if near.key == key else "of another model or credential"
        return f"{text} is the same, but {whose}."
    told = "; ".join(_told(difference, with_values) for difference in near.differences[:MAX_SHOWN])
    count = len(near.differences) - MAX_SHOWN
    return f"{text} differs in {told}{f'; and {count} more' if count > 0 else ''}."


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


def _texts(difference: Difference) -> tuple[str, str]:
    """The two values, where both are texts."""
    asked, stored = difference.asked, difference.stored
    return (asked, stored) if isinstance(asked, str) and isinstance(stored, str) else ("", "")


def _agreement(difference: Difference) -> int:
    """How many characters two texts begin with alike."""
    return _alike(*_texts(difference))


def _rest(difference: Difference) -> int:
    """How many characters two texts have between what they begin and what they end with alike."""
    asked, stored = _texts(difference)
    start = _alike(asked, stored)
    asked, stored = asked[start:], stored[start:]
    return len(asked) + len(stored) - 2 * _alike(asked[::-1], stored[::-1])


def _alike(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _told(difference: Difference, with_values: bool) -> str:
    if not with_values:
        return difference.place
    asked, stored = _shown(difference.asked), _shown(difference.stored)
    return f"{difference.place} (asked {asked}, stored {stored})"


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def _cut(value: Any, at: int) -> Any:
    """A value, or a part of one that is long, as text."""
    if isinstance(value, str):
        start = at if len(value) > MAX_VALUE else 0
        end = start + MAX_VALUE
        return f"{'...' * (start > 0)}{value[start:end]}{'...' * (end < len(value))}"
    text = orjson.dumps(value).decode()
    return value if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."
