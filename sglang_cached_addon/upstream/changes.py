"""Requests that change the model behind the URL: how far they are, and what came of them.

Free of I/O. Only a request that upstream has carried out, or may have, makes another model: one
that was refused, or that upstream never had as a whole, changes nothing. While one is with
upstream, nothing that is generated is of a known model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sglang_cached_addon.core.updates import Change


class UpdatePhase(Enum):
    """How far a request is."""

    COMING = "upstream does not have all of it, and cannot carry it out"
    SENT = "upstream has all of it"
    ENDED = "it is known what came of it"


class Ending(Enum):
    """What came of a request."""

    CARRIED_OUT = "the model is another one, or may be"
    WITHOUT_EFFECT = "nothing was changed"


# Upstream, or what stands before it, has not even begun. A 400 is none of these: SGLang says it of
# weights that could not be loaded, too, and may have loaded some of them.
_REFUSALS = frozenset({*range(300, 400), *range(401, 500), 501, 505})


@dataclass(slots=True, eq=False)
class Update:
    """One request that changes the model, if it is carried out."""

    updates: Updates
    """All that are under way."""
    change: Change
    adapter: str | None
    """The one that it names, where only that is changed."""
    announced: asyncio.Future[None]
    """Done when the disk knows of the request. Only then may upstream get it."""
    phase: UpdatePhase = UpdatePhase.COMING

    def sent(self) -> None:
        """Upstream gets the last of it."""
        if self.phase is UpdatePhase.COMING:
            self.phase = UpdatePhase.SENT
            self.updates.note()

    def ended(self, status: int | None, *, has_reached: bool = True) -> None:
        """Upstream has answered with this status, or will not (None). `has_reached`: there was a
        connection to it. What is said after the first time is not heard."""
        if self.phase is UpdatePhase.ENDED:
            return
        is_success = status is not None and 200 <= status < 300
        may_be = is_success or (self.phase is UpdatePhase.SENT and has_reached)
        self.phase = UpdatePhase.ENDED
        is_done = may_be and status not in _REFUSALS
        self.updates.end(self, Ending.CARRIED_OUT if is_done else Ending.WITHOUT_EFFECT)


class Updates:
    """The requests under way."""

    def __init__(self, ended: Callable[[Update, Ending], object]) -> None:
        """`ended` is told what came of each."""
        self._ended = ended
        self._under_way: set[Update] = set()
        self.quiet = asyncio.Event()
        """Set as long as the model is not changing."""
        self.quiet.set()

    def begin(self, change: Change, adapter: str | None, announced: asyncio.Future[None]) -> Update:
        """One more request is under way."""
        update = Update(self, change, adapter, announced)
        self._under_way.add(update)
        return update

    def note(self) -> None:
        """A request has come to another phase."""
        if any(update.phase is UpdatePhase.SENT for update in self._under_way):
            self.quiet.clear()
        else:
            self.quiet.set()

    def end(self, update: Update, what: Ending) -> None:
        self._under_way.discard(update)
        # First, so that who waits for quiet finds what has changed.
        self._ended(update, what)
        self.note()
