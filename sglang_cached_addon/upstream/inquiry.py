"""Upstream is asked who it is: beside the calls, or for a call that has to know.

Those who want to know at the same time share a round of questions (`asking`). What upstream says is
the model (`model`) from then on, and counts for a while (`belief`); another process may know other
keys, so that the gate forgets whom the former one has accepted.
"""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum

from sglang_cached_addon.upstream.asking import Questions, Said, Verdict
from sglang_cached_addon.upstream.belief import RETRY_SECONDS, Belief
from sglang_cached_addon.upstream.gate import Gate
from sglang_cached_addon.upstream.model import Model
from sglang_cached_addon.upstream.single import Single, within
from sglang_cached_addon.wire.connection import Headers

FIRST_SECONDS = 2.0
"""How long a call waits for upstream to say who it is, where it never has."""

REST_SECONDS = 0.05
"""At least so long between two looks at what is due."""

TICK_SECONDS = 5.0
"""At least so often those askers are looked through whose acceptance is to be renewed."""


class Health(StrEnum):
    """Whether upstream answers."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


_HEALTH = {Verdict.SLOW: Health.UNKNOWN, Verdict.DOWN: Health.DOWN}
"""What a verdict says of upstream's health: with every other one, it answers."""


class Inquiry:
    """What upstream says of itself, and how long that counts."""

    def __init__(
        self, questions: Questions, model: Model, gate: Gate, interval: float, *, is_offline: bool
    ) -> None:
        """`interval` is as `Belief` has it; offline, nobody is asked."""
        self.questions = questions
        self.belief = Belief(interval, is_known=model.identity is not None)
        self.health = Health.UNKNOWN
        self.credential_headers: Headers = ()
        """The credential with which upstream last named its model; it is in memory only."""
        self._model = model
        self._gate = gate
        self.is_offline = is_offline
        self._was_down = False
        """Whether upstream could not be reached: another process may answer when it is back."""
        self._failure, self._failure_until = Verdict.NAMELESS, float("-inf")
        """What upstream last said instead of its name, and until when no call asks again."""
        self._asking: Single[Said] = Single()
        self._keeping: Single[None] = Single()

    # Beside the calls

    def keep(self, now: float) -> None:
        """A call has come: upstream is asked beside it, until there was none for a while."""
        self.belief.call(now)
        if not self._keeping.is_busy:
            self.belief.wake(now)
            self._keeping.join(self._keep)

    async def _keep(self) -> None:
        while not self.belief.is_pausing(now := time.monotonic()):
            if now >= self.belief.ask_at and not self._asking.is_busy:
                self.poll()
            self._gate.renew(now)
            until_due = max(0.0, self.belief.ask_at - now)
            # Not oftener than that, though a slow upstream has not yet answered what is due.
            await asyncio.sleep(min(max(until_due, REST_SECONDS), TICK_SECONDS))

    def look(self, now: float) -> Health:
        """Whether upstream answered when it was last asked; if that is old, it is asked again, and
        nobody waits for it."""
        if not self.is_offline and self.belief.is_old(now) and not self._asking.is_busy:
            self.poll()
        return self.health

    def doubt(self) -> None:
        """Something showed that upstream may be another one."""
        self.questions.forget()
        if not self.is_offline:
            self.poll()

    def poll(self) -> asyncio.Future[Said]:
        """A round of questions that no call asks for, or the one that is under way."""
        return self._asking.join(self._poll)

    async def _poll(self) -> Said:
        """Asks with each credential that may be told."""
        said = Said(Verdict.REFUSED)
        for headers in dict.fromkeys((self.credential_headers, self._gate.latest, ())):
            said = await self._round(headers)
            if said.verdict is not Verdict.REFUSED:
                return said
        self.belief.refused(time.monotonic())
        return said

    # For one who has to know

    async def check(self) -> Health:
        """Whether upstream answers when it is asked now; that is not waited for long."""
        if not self.is_offline:
            await within(FIRST_SECONDS, self.poll())
        return self.health

    async def learn(self, headers: Headers) -> Verdict | None:
        """What upstream says to a client's credential; None where that takes too long."""
        return await within(FIRST_SECONDS, self._learn(headers))

    async def _learn(self, headers: Headers) -> Verdict:
        """Those who want to know at the same time share the answer, but for a refusal, which is
        only for who showed that credential."""
        is_own = False

        async def ask() -> Said:
            nonlocal is_own
            is_own = True
            return await self._round(headers)

        while True:
            if not self._asking.is_busy and time.monotonic() < self._failure_until:
                return self._failure
            said = await self._asking.join(ask)
            if is_own or said.verdict is not Verdict.REFUSED:
                return said.verdict

    async def _round(self, headers: Headers) -> Said:
        while True:
            began = time.monotonic()
            self.belief.asking(began)
            said = await self.questions.round(headers)
            if not self.belief.is_late(began):
                self.take(said, headers)
                return said

    # What it says

    def take(self, said: Said, headers: Headers) -> None:
        """Learns from what upstream has said, or from its silence."""
        now = time.monotonic()
        self.health = _HEALTH.get(said.verdict, Health.UP)
        match said.verdict:
            case Verdict.KNOWN:
                self.credential_headers = headers
                self._take_name(said)
                return
            case Verdict.REFUSED:
                return
            case Verdict.NAMELESS:
                self.belief.nameless(now)
                self._model.unnamed()
            case Verdict.TROUBLED:
                # As a balancer says it while a process is started anew behind it.
                self.questions.forget()
                self.belief.silent(now)
            case Verdict.SLOW | Verdict.DOWN:
                self._was_down |= said.verdict is Verdict.DOWN
                self.belief.silent(now)
        self._failure, self._failure_until = said.verdict, now + RETRY_SECONDS

    def _take_name(self, said: Said) -> None:
        assert said.identity
        is_restarted = self._model.named(said.identity)
        if is_restarted or self._was_down:
            # Another process may know other keys.
            self._gate.forget_all()
        self._was_down = False
        self.belief.confirmed(said.asked_at)

    def close(self) -> None:
        """Hangs up."""
        self._keeping.cancel()
        self._asking.cancel()
        self.questions.close()
