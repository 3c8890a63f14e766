"""Whether an answer that has come is of the model that it was asked of.

Upstream is asked who it is after each answer that is to be stored, and on the answer's own
connection too: behind one URL there may be several servers.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.upstream.asking import PATIENCE_SECONDS, Said, Verdict
from sglang_cached_addon.upstream.changes import Updates
from sglang_cached_addon.upstream.inquiry import Inquiry
from sglang_cached_addon.upstream.model import Model
from sglang_cached_addon.upstream.single import Following, within
from sglang_cached_addon.wire.client import Ask
from sglang_cached_addon.wire.connection import Headers

BREATH_SECONDS = 0.005
"""At least so long between two questions that answers wait for: those that come in between share
one."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What upstream has said of itself on a connection that samples come on."""

    said: Said
    asked_on: int
    """The number of the connection on which it is asked otherwise, if the same process is at both;
    else 0."""


class Confirming:
    """Asks upstream behind its answers."""

    def __init__(self, inquiry: Inquiry, model: Model, updates: Updates) -> None:
        self._inquiry = inquiry
        self._model = model
        self._updates = updates
        self._asking: Following[bool] = Following(BREATH_SECONDS)

    def watch(self, headers: Headers) -> None:
        """A fetch begins: upstream is asked who it is meanwhile, so that no model comes and goes
        unseen while the fetch is under way."""
        if not self._inquiry.is_offline:
            self._asking.join(lambda: self._is_known(headers))

    async def confirm(
        self,
        model_version: int,
        headers: Headers,
        greeting: asyncio.Future[Greeting | None] | None = None,
    ) -> Reason | None:
        """Why an answer that has come must not be stored: None once upstream, asked after it came,
        has said that it still is the model that it was in this `model_version`. `greeting` is what
        it says on the connection of that answer, if it can be asked there."""
        model = self._model
        if model_version != model.version:
            return Reason.MODEL_CHANGED
        is_known = await self._asking.join(lambda: self._is_known(headers))
        greeted = await asyncio.shield(greeting) if greeting else None
        if self._inquiry.questions.sightings.are_several(time.monotonic()):
            return Reason.SEVERAL
        await within(PATIENCE_SECONDS, self._updates.quiet.wait())
        if model_version != model.version or not self._updates.quiet.is_set():
            return Reason.MODEL_CHANGED
        if greeted and not self.is_lasting(greeted):
            theirs, ours = greeted.said.identity, model.identity
            if theirs and ours and _is_other(theirs, ours, is_former=greeted.asked_on != 0):
                self._inquiry.doubt()
                return Reason.MODEL_CHANGED
            is_known = is_known and theirs is not None
        return None if is_known else Reason.UNCONFIRMED

    async def greet(self, ask: Ask, former: Greeting | None) -> Greeting:
        """Asks upstream who it is on a connection that samples come on."""
        questions, headers = self._inquiry.questions, self._inquiry.credential_headers
        said = await questions.on(ask, headers, is_new=former is None)
        found, ours = said.identity, self._model.identity
        if not (found and ours and found.incarnation and found.incarnation == ours.incarnation):
            return Greeting(said, 0)
        if found != ours and not self._inquiry.belief.is_late(said.asked_at):
            # The process is the one that is asked otherwise, and has another model by now.
            questions.forget()
            self._inquiry.take(said, self._inquiry.credential_headers)
        return Greeting(said, questions.connection)

    def is_lasting(self, greeting: Greeting) -> bool:
        """Whether the process on that connection is the one that is asked otherwise, so that what
        it says there holds here."""
        return greeting.asked_on != 0 and greeting.asked_on == self._inquiry.questions.connection

    async def _is_known(self, headers: Headers) -> bool:
        """Whether upstream says who it is, asked with a client's credential, or else with the one
        with which it was told before."""
        began, said = time.monotonic(), Said(Verdict.REFUSED)
        for one in dict.fromkeys((headers, self._inquiry.credential_headers)):
            said = await self._inquiry.questions.again(one)
            if self._inquiry.belief.is_late(began):
                return False
            if said.verdict is Verdict.NAMELESS and one != self._inquiry.credential_headers:
                continue  # to this credential, as it seems
            if said.verdict is not Verdict.REFUSED:
                self._inquiry.take(said, one)
                break
        return said.verdict is Verdict.KNOWN

    def close(self) -> None:
        self._asking.cancel()


def _is_other(theirs: Identity, ours: Identity, *, is_former: bool) -> bool:
    """Whether an answer may be of another model than ours. `is_former`: what its server says may be
    from before the answer, and counts as long as the same process is asked otherwise."""
    is_another = theirs.incarnation != ours.incarnation
    return theirs.digest != ours.digest or (is_former and is_another)
