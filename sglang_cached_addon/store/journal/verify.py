"""Checking a journal line by line, without taking its folder or changing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sglang_cached_addon.store.journal.extents import Place
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.lines import BROKEN, OtherVersion, parse


@dataclass(slots=True)
class Examined:
    """What was found in a journal."""

    entries: int = 0
    """The number of keys."""
    samples: int = 0
    """The number of samples that no later line has replaced."""
    bytes: int = 0
    """The size of the file."""
    broken: int = 0
    """The number of lines that cannot be read."""
    others: int = 0
    """The number of lines of other format versions."""
    torn: int = 0
    """The bytes behind the last newline."""


def examine(path: Path, tell: Callable[[int, str], None]) -> Examined:
    """Reads a journal. `tell` is called with the number of each broken line, and with what is wrong
    with it; a torn last line is not one of those."""
    found, index, offset = Examined(), Index(), 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            found.bytes += len(line)
            if not line.endswith(b"\n"):
                found.torn = len(line)
                break
            place, offset = Place(offset, len(line)), offset + len(line)
            try:
                index.add(parse(line)[0], place)
            except OtherVersion:
                found.others += 1
            except BROKEN as e:
                found.broken += 1
                tell(number, str(e))
    found.entries, found.samples = index.entries, index.samples
    return found
