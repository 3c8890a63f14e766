"""Runs: named passes over the pools, in which the k-th equal call gets the k-th sample.

Pure. What a run is called, and what is known of it; which samples its calls have taken, `places`
knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import Any

from sglang_cached_addon.core.places import Places

PREFIX = "/run/"
"""What stands before the name of a run in a path."""

HEADER = b"x-cache-run"
"""The header field that names a run, in lower case."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

WHAT_A_NAME_IS = "the name of a run is 1 to 100 letters, digits, dots, underscores and hyphens"


def checked(name: str) -> str:
    """The name of a run. Raises ValueError for what is none."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r}: {WHAT_A_NAME_IS}")
    return name


def split(path: str) -> tuple[str | None, str]:
    """The run that a path names, as it is written there, and the path without that."""
    if not path.startswith(PREFIX):
        return None, path
    end = next((at for at, c in enumerate(path) if c in "/?" and at >= len(PREFIX)), len(path))
    rest = path[end:]
    return path[len(PREFIX) : end], rest if rest.startswith("/") else f"/{rest}"


@dataclass(slots=True, eq=False)
class Run:
    """What is known of a run. Times are Unix seconds."""

    name: str
    first: float
    """When it was first used."""
    last: float
    """When it was last used."""
    calls: int = 0
    """Calls that took places, or wanted to."""
    reused: int = 0
    """Samples that were stored when a call took them."""
    generated: int = 0
    """Samples that were generated for it."""
    fresh_since: float = -inf
    """Samples that were stored before are not for this run."""
    places: Places = field(default_factory=Places)
    is_over: bool = False
    """It was deleted, or forgotten."""
    rewinds: int = 0
    """How often it began anew: what was taken before is not to be given back."""

    @property
    def is_fresh(self) -> bool:
        """Whether some stored samples are not for this run."""
        return self.fresh_since > -inf

    def rewind(self, fresh_since: float = -inf) -> None:
        """Begins anew: all places are free, but for those of samples that were stored before
        `fresh_since`."""
        self.places, self.fresh_since = Places(), fresh_since
        self.rewinds += 1

    def as_json(self) -> dict[str, Any]:
        return shown(
            self.name,
            calls=self.calls,
            places=self.places.count,
            reused=self.reused,
            generated=self.generated,
            first=self.first,
            last=self.last,
            fresh_since=self.fresh_since,
        )


def shown(
    name: str, *, first: float, last: float, fresh_since: float, **counts: int
) -> dict[str, Any]:
    """What people are told of a run."""
    since = round(fresh_since, 3) if fresh_since > -inf else None
    times = {"first": round(first, 3), "last": round(last, 3), "fresh_since": since}
    return {"name": name, **counts, **times}


def chosen(in_path: str | None, in_header: str | None) -> str:
    """The run that a request names; empty if it names none. Raises ValueError for a bad name."""
    name = in_path if in_header is None else in_header
    return "" if name is None else checked(name)
