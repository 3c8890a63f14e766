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


class Wild(Enum):
    """A step that leads to more than one value."""

    MEMBER = "*"
    ITEM = "[*]"
    DEPTH = "**"


Step = str | int | Wild

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
        """The strings that it leads to within an object or a list, each once."""
        start: Location = ()
        todo = [(start, value, self._reached({0}))]
        while todo:
            location, holder, places = todo.pop()
            for key, child in holder.items() if isinstance(holder, dict) else enumerate(holder):
                if not isinstance(child, str | dict | list):
                    continue
                after = self._reached(self._after(places, key))
                if not isinstance(child, str):
                    if after:
                        todo.append(((*location, key), child, after))
                elif len(self.steps) in after:
                    yield (*location, key), child

    # A place is how many steps are taken. Where there is a `**`, one value has several.

    def _after(self, places: Iterable[int], key: str | int) -> Iterator[int]:
        """The places behind a member or an item."""
        for place in places:
            step = self.steps[place] if place < len(self.steps) else None
            if step is Wild.DEPTH:
                yield place
            elif step is (Wild.MEMBER if isinstance(key, str) else Wild.ITEM) or step == key:
                yield place + 1

    def _reached(self, places: Iterable[int]) -> set[int]:
        """These places, and those behind a `**` that stands for nothing."""
        reached = set(places)
        for place in sorted(reached):
            while place < len(self.steps) and self.steps[place] is Wild.DEPTH:
                place += 1
                reached.add(place)
        return reached
