"""The line of the log about a request, for people and for machines.

Pure: values to text, which is made when the line is shown to somebody. Nothing of a query is in it,
where there may be a secret, and no control character.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

import orjson

from sglang_cached_addon.core import printable
from sglang_cached_addon.core.outcome import SHOWN, Outcome


class LogFormat(StrEnum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


class Ended(NamedTuple):
    """A request that is over, which is its line for people."""

    path: str
    outcome: Outcome
    seconds: float
    id: bytes = b""
    run: str = ""
    status: int | None = None
    """The status of its answer; None where that did not come to its end."""
    size: int | None = None
    """How many bytes the body of its answer had on the wire; None where that is not known."""

    def __str__(self) -> str:
        return self.outcome.line(printable.path(self.path), self.seconds)


class AsJson(NamedTuple):
    """The same as one object, in one line."""

    ended: Ended
    at: float
    """When it ended: Unix seconds."""
    dialect: str | None

    def __str__(self) -> str:
        ended, outcome = self.ended, self.ended.outcome
        line = {
            "time": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="milliseconds"),
            "id": ended.id.decode(),
            "path": printable.path(ended.path),
            "dialect": self.dialect,
            "outcome": str(outcome.kind),
            "reason": outcome.reason and str(outcome.reason),
            "have": outcome.have if outcome.want else None,
            "want": outcome.want or None,
            "key": outcome.key[:SHOWN].hex() or None,
            "run": ended.run or None,
            "status": ended.status,
            "seconds": round(ended.seconds, 6),
            "bytes": ended.size,
        }
        return orjson.dumps(line).decode()
