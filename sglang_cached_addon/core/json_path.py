"""Paths into JSON, as `messages[*].content`, and the strings that they lead to.

    name    the member of that name        [N]     the item of that number, from 0
    *       any member                     [*]     any item
    **      any member or item, at any depth, or none at all

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

Location = tuple[str | int, ...]
"""Where a value is: the names of members and the numbers of items that lead to it."""


class TooMuch(Exception):
    """There is more than can be looked at while others wait."""


class Wild(Enum):
    """A step that leads to more than one value."""

    MEMBER = "*"
    ITEM = "[*]"
    DEPTH = "**"


Step = str | int | Wild

Places = frozenset[int]
"""How many steps are taken: where there is a `**`, one value has several such places."""

MOST = 50_000
"""So many strings, objects and lists are looked at for one path, in some 0.05 s."""

_LOOKED_AT = frozenset({str, dict, list})

_STEP = re.compile(r"(?:(?<=.)\.|^)(?:(\*\*?)|([^.\[\]*\s]+))|\[(?:(\*)|(\d{1,9}))\]")


@dataclass(frozen=True, slots=True)
class Path:
    """A path."""

    text: str
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """Raises ValueError, which says how paths are written."""
        steps: list[Step] = []
        end = 0
        while end < len(text):
            found = _STEP.match(text, end)
            if not found:
                raise ValueError(
                    f"{text!r} is no path: write names with dots between, as in "
                    "messages[*].content, with [N] or [*] for items, * for any member, "
                    "and ** for any depth"
                )
            wild, name, item, number = found.groups()
            steps.append(Wild(wild) if wild else name or (Wild.ITEM if item else int(number)))
            end = found.end()
        if not steps:
            raise ValueError("the path is empty: write one like messages[*].content")
        return cls(text, tuple(steps))

    def strings(self, value: Any) -> Iterator[tuple[Location, str]]:
        """The strings that it leads to within an object or a list, each once. Raises `TooMuch`."""
        start: Location = ()
        todo = [(start, value, self._reached({0}))]
        named = {step for step in self.steps if not isinstance(step, Wild)}
        looked_at = 0
        seen: dict[tuple[Places, str | int | None, Wild], Places] = {}
        while todo:
            location, holder, places = todo.pop()
            is_object = isinstance(holder, dict)
            wild = Wild.MEMBER if is_object else Wild.ITEM
            for key, child in holder.items() if is_object else enumerate(holder):
                if type(child) not in _LOOKED_AT:
                    continue
                way = (places, key if key in named else None, wild)
                if (after := seen.get(way)) is None:
                    after = seen[way] = self._after(*way)
                looked_at += 1
                if looked_at > MOST:
                    raise TooMuch
                if type(child) is str:
                    if len(self.steps) in after:
                        yield (*location, key), child
                elif after and child:
                    todo.append(((*location, key), child, after))

    def _after(self, places: Places, key: str | int | None, wild: Wild) -> Places:
        """The places behind a member or an item, which is `wild`; its key, if any step has that."""
        steps = [(place, self.steps[place]) for place in places if place < len(self.steps)]
        taken = {place + 1 for place, step in steps if step is wild or step == key}
        return self._reached(taken | {place for place, step in steps if step is Wild.DEPTH})

    def _reached(self, places: Iterable[int]) -> Places:
        """These places, and those behind a `**` that stands for nothing."""
        reached = set(places)
        for place in sorted(reached):
            while place < len(self.steps) and self.steps[place] is Wild.DEPTH:
                place += 1
                reached.add(place)
        return frozenset(reached)
