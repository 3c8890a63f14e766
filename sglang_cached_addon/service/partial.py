"""Whether upstream understands calls for a part of an answer.

Pure: times are arguments, in seconds of one clock that never goes back.
"""

from __future__ import annotations

STRIKES = 2
"""How often in a row upstream may misunderstand calls for a part of an answer."""

PAUSE_SECONDS = 60.0
"""For how many seconds after that it is not asked for a part."""


class PartialCalls:
    """What has become of the calls for a part of an answer, by the names of their dialects."""

    def __init__(self) -> None:
        self._failures: dict[str, list[float]] = {}

    def failed(self, dialect: str, now: float) -> None:
        """Upstream did not understand one."""
        self._failures.setdefault(dialect, []).append(now)

    def worked(self, dialect: str) -> None:
        """Upstream has answered one."""
        self._failures.pop(dialect, None)

    def are_pointless(self, dialect: str, now: float) -> bool:
        """Whether it is of no use to ask upstream for a part now."""
        failures = self._failures.get(dialect, [])
        if len(failures) < STRIKES:
            return False
        if now <= failures[-1] + PAUSE_SECONDS:
            return True
        del self._failures[dialect]
        return False
