"""One run that several proxies share: which samples its calls have.

A call takes samples in one round trip. What becomes of them is told in the background, in the order
of the other writes, so that nobody sees a sample before it is known whose it is. While the server
is away or full nobody can know which samples are taken, and none is given out. What the server has
lost is told again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice

from sglang_cached_addon.store.redis.outbox import Outbox, Write
from sglang_cached_addon.store.redis.places import (
    FREED,
    HELD,
    KEPT,
    NAMES,
    Pass,
    RunCommands,
    Said,
    read,
)
from sglang_cached_addon.store.redis.protocol import Command, Result
from sglang_cached_addon.store.redis.server import Away

_MOST, _ROOM = 1000, 1024
"""Of so many marks is told at once, and the bytes of room that this may take."""


class SharedRun:
    """One run."""

    def __init__(
        self,
        name: str,
        proxy: str,
        ttl: float,
        outbox: Outbox,
        is_known: Callable[[bool], Awaitable[bool]],
    ) -> None:
        """`proxy` tells this one from others. A run that was not used for `ttl` seconds is
        forgotten. `is_known` tells whether the server can say what is taken; it may wait for that,
        if it is told so."""
        self.name = name
        self.last = 0.0
        """When it was last used here: Unix seconds."""
        self.calls = self.reused = self.generated = 0
        """What the server has not been told of yet."""
        self.current = Pass()
        self.turn = 0
        """Rises when the run begins anew: what was taken before is not to be given back."""
        self._outbox, self._is_known = outbox, is_known
        self._commands = RunCommands(name, proxy, ttl)
        self._taken: set[int] = set()
        """Marks that are taken for good, as far as is known here."""
        self._held: set[int] = set()
        """Those of calls that are under way here."""
        self._asked: set[int] = set()
        """Those that were asked for just now."""
        self._untold: dict[int, str] = {}
        """What is to be told of marks."""
        self._is_queued = False

    @property
    def fresh_since(self) -> float:
        """As `Run.fresh_since`."""
        return self.current.fresh_since

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is under way."""
        return not (self._held or self._asked or self._untold)

    def is_free(self, mark: int) -> bool:
        """Whether a sample is not taken, as far as is known here."""
        return not (mark in self._taken or mark in self._held or mark in self._asked)

    # Drawing

    async def take(self, wants: Iterable[tuple[int, Sequence[int]]]) -> list[int] | None:
        """Takes so many of each group of marks, the first ones that nobody has: the marks of those
        that were. They are not all that is free if its `current` was another one before. None where
        nobody can know what is taken."""
        wants = list(wants)
        own = {mark for _, marks in wants for mark in marks}
        self._asked |= own  # so that no two calls here are about the same
        try:
            while await self._is_known(bool(wants)):
                before = self.current
                asking = self._outbox.ask(*self._commands.take(before, secrets.token_hex(4), wants))
                try:
                    result = await asyncio.shield(asking)
                except asyncio.CancelledError:  # what is granted by then is nobody's
                    asking.add_done_callback(self._let_go)
                    raise
                except Away:  # they may have been granted nevertheless
                    self._note(own, FREED)
                    continue
                return None if isinstance(result, Exception) else self._granted(result, before)
        finally:
            self._asked -= own
        return None

    def _granted(self, result: Result, before: Pass) -> list[int] | None:
        said = read(result)
        if not self._hear(said):
            return None if said.current == before == self.current else []
        self._held.update(said.granted)
        self._taken.update(said.refused)
        if said.granted:
            self._note((), HELD)  # that there was a call
        return said.granted

    def _let_go(self, asking: asyncio.Future[Result]) -> None:
        if not (asking.cancelled() or asking.exception() or isinstance(asking.result(), Exception)):
            said = read(asking.result())
            if self._hear(said):  # another call may have one by now that was generated here
                lost = [m for m in said.granted if not (m in self._held or m in self._taken)]
                self._note(lost, FREED)

    def hold(self, mark: int) -> bool:
        """Takes a sample that nobody else knows of yet."""
        if not self.is_free(mark):
            return False
        self._held.add(mark)
        self._note([mark], HELD)
        return True

    def settle(self, marks: Iterable[int], turn: int, *, is_delivered: bool) -> None:
        """What was taken in this turn was delivered, or is free again."""
        if turn != self.turn:
            return
        self._held.difference_update(marks := list(marks))
        if is_delivered:
            self._taken.update(marks)
        self._note(marks, KEPT if is_delivered else FREED)

    # What the server says

    def _hear(self, said: Said) -> bool:
        """Takes note of how things are there; whether it was done what was asked for."""
        theirs, mine = said.current, self.current
        if theirs.number < mine.number:
            return False  # said before it was known
        self.current = theirs
        if theirs.number > mine.number > 0:
            self.turn += 1
            for marks in (self._taken, self._held, self._untold):
                marks.clear()
        elif theirs.born != mine.born:  # what is held is told again and again
            self._untold = dict.fromkeys(self._taken, KEPT) | self._untold
        if theirs.born != mine.born:
            self._outbox.tell(("SADD", NAMES, self.name))
            if self._untold:
                self._queue()
        return said.is_done

    # What it is told

    def renew(self) -> None:
        """Holds on to what is under way."""
        if self._held:
            self._note(self._held, HELD)

    def resume(self) -> None:
        """Hears whether something was lost."""
        if self.current.born:
            self._queue()

    def _note(self, marks: Iterable[int], what: str) -> None:
        self._untold |= dict.fromkeys(marks, what)
        self._queue()

    def _queue(self) -> None:
        """Has all be told that there is to tell by the time it goes out."""
        if self._is_queued:
            return
        told: dict[int, str] = {}
        counts, turn = [0, 0, 0], self.turn

        def command() -> Command:
            nonlocal turn
            self._is_queued, turn = False, self.turn  # what comes from now on is told behind this
            for mark, what in tuple(islice(self._untold.items(), _MOST - len(told))):
                told[mark] = what
                del self._untold[mark]
            self._move(counts, 1)
            marks = (f"{what}{mark}" for mark, what in told.items())
            return self._commands.tell(self.current, secrets.token_hex(4), self.last, counts, marks)

        def done(result: Result) -> None:
            if not (isinstance(result, Exception) or self._hear(read(result))):
                self._move(counts, -1)
                if turn == self.turn:
                    self._untold = told | self._untold
            if self._untold:
                self._queue()

        self._is_queued = self._outbox.queue(Write(command, size=_ROOM, done=done))

    def _move(self, counts: list[int], sign: int) -> None:
        """Moves what is counted to what is on its way, or back."""
        for place, name in enumerate(("calls", "reused", "generated")):
            moved = getattr(self, name) if sign > 0 else -counts[place]
            counts[place] += moved
            setattr(self, name, getattr(self, name) - moved)

    # What people see and change

    def show(self, change: str = "") -> Command:
        """As `RunCommands.show`."""
        return self._commands.show(change, self.current.number, time.time())
