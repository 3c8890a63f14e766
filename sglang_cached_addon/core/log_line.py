"""The line of the log about a request, for people and for machines.

Pure: values to text. Nothing of a query is shown, which may have a secret in it, and no control
character.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import orjson

from sglang_cached_addon.core import printable
from sglang_cached_addon.core.outcome import SHOWN, Outcome


class LogFormat(StrEnum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over."""

    path: str
    outcome: Outcome
    seconds: float
    id: bytes = b""
    dialect: str | None = None
    run: str = ""
    status: int | None = None
    """The status of its answer; None where that did not come to its end."""
    size: int | None = None
    """How many bytes the body of its answer had on the wire; None where that is not known."""

    def text(self) -> str:
        return self.outcome.line(printable.path(self.path), self.seconds)

    def json(self, time: str) -> str:
        """One object, in one line; `time` says when it ended."""
        outcome = self.outcome
        line = {
            "time": time,
            "id": self.id.decode(),
            "path": printable.path(self.path),
            "dialect": self.dialect,
            "outcome": str(outcome.kind),
            "reason": outcome.reason and str(outcome.reason),
            "have": outcome.have if outcome.want else None,
            "want": outcome.want or None,
            "key": outcome.key[:SHOWN].hex() or None,
            "run": self.run or None,
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "bytes": self.size,
        }
        return orjson.dumps(line).decode()
