"""How long what upstream has said of its model is believed.

Pure: times are arguments, monotonic, in seconds. Nothing that is stored waits for upstream: what
it said last is believed until it says something else, and it is asked again beside the calls.
After a long pause, in which it was not asked, calls give it a moment to speak first.
"""

from __future__ import annotations

from enum import Enum
from math import inf

WAKE_SECONDS = 0.25
"""How long a call waits for upstream's word after a pause."""

PAUSE_SECONDS = 600.0
"""How long after the last call upstream goes on being asked."""

EARLY = 0.6
"""At this share of the interval upstream is asked again, so that its answer is there in time."""

RETRY_SECONDS = 1.0
"""How soon upstream is asked again after it has not said who it is."""


class Trust(Enum):
    """What may be done with what is stored."""

    BELIEVED = "upstream's last word counts"
    WAKING = "upstream's last word is old, and it is just being asked"
    UNKNOWN = "upstream has not said who it is, or has said something else since"


class Belief:
    """Whether upstream's last word counts."""

    def __init__(self, interval: float, *, is_known: bool) -> None:
        """`interval` is in seconds; `is_known`: there is a word from an earlier process."""
        self._interval = interval
        self._is_known = is_known
        self._lapses_at = inf
        """When upstream's last word ceases to count."""
        self._doubted_at = -inf
        """When something last showed that upstream may be another one."""
        self._said_at = -inf
        """When upstream was asked for its last word."""
        self._waking_until = -inf
        """Until when calls wait for upstream's word after a pause."""
        self._called_at = -inf
        """When the last call came."""
        self.ask_at = -inf
        """When upstream is to be asked again."""

    def trust(self, now: float) -> Trust:
        """What counts now."""
        if not self._is_known or now >= self._lapses_at:
            return Trust.UNKNOWN
        return Trust.WAKING if now < self._waking_until else Trust.BELIEVED

    def call(self, now: float) -> None:
        """A call has come."""
        self._called_at = now

    def wake(self, now: float) -> None:
        """Upstream is asked again after a pause, if there was one."""
        if self.is_old(now):
            self.ask_at = now
            self._waking_until = now + WAKE_SECONDS

    def patience(self, now: float) -> float:
        """How long a call still waits for upstream's word, where there is a former one."""
        return max(0.0, self._waking_until - now)

    def is_pausing(self, now: float) -> bool:
        """Whether no call has come for so long that upstream is not asked any more."""
        return now - self._called_at > PAUSE_SECONDS

    def is_old(self, now: float) -> bool:
        """Whether upstream has not been heard for longer than the interval."""
        return now - self._said_at > self._interval

    def is_late(self, asked_at: float) -> bool:
        """Whether upstream was asked this before it was another one: it may have spoken of what it
        was then, however late it answers."""
        return asked_at < self._doubted_at

    def asking(self, now: float) -> None:
        """Upstream is being asked."""
        self.ask_at = now + self._interval * EARLY

    # What came of it

    def confirmed(self, asked_at: float) -> None:
        """Upstream has named its model."""
        self._is_known, self._lapses_at, self._waking_until = True, inf, -inf
        self._said_at = max(self._said_at, asked_at)
        self.ask_at = asked_at + self._interval * EARLY

    def silent(self, now: float) -> None:
        """Upstream is silent, or slow, or has trouble: what it said before goes on to count."""
        self.ask_at = now + RETRY_SECONDS

    def refused(self, now: float) -> None:
        """Upstream does not tell a credential that it told before: its last word counts as long as
        any, and no longer."""
        self._lapses_at = min(self._lapses_at, max(now, self._said_at + self._interval))
        self.ask_at = now + RETRY_SECONDS

    def doubted(self, now: float) -> None:
        """Something showed that upstream is another one by now."""
        self._lapses_at = self._doubted_at = now
        self.ask_at = now

    def nameless(self, now: float) -> None:
        """Upstream has said something else than its name."""
        self._is_known = False
        self.ask_at = now + RETRY_SECONDS
