"""A call on its way to an answer: what is short is followed, waited for or fetched, step by step.

`Pursuit.decide` names the next step, `take` takes it, and after each wait everything is looked at
anew, so that one answer is of one model, and of what there is by then. What is different of a
stream is in `stream_pursuit`. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from sglang_cached_addon.core.cache import Brought, Sample
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason, Terms
from sglang_cached_addon.dialects.base import nature_of
from sglang_cached_addon.service.asking import Answer, Ask, Reply
from sglang_cached_addon.service.claims import Claim
from sglang_cached_addon.service.fetching import Fetching, Means
from sglang_cached_addon.service.findings import Bypass, Fetch, Known
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.gathering import Others
from sglang_cached_addon.service.merging import MISUNDERSTOOD, Merge
from sglang_cached_addon.service.reusing import Reusing
from sglang_cached_addon.service.steps import (
    Complete,
    Gather,
    Hold,
    Lead,
    LookFurther,
    PassOn,
    Reuse,
    Step,
    Wait,
)


class Pursuit:
    """One call for JSON, under one model."""

    waits_for_any = False
    """Whether it waits where others fetch something of what is short, and not all of it."""

    def __init__(
        self,
        means: Means,
        ask: Ask,
        known: Known,
        terms: Terms,
        *,
        is_alone: bool,
        merge: Merge | None = None,
    ) -> None:
        """One that `is_alone` neither waits for others nor is waited for; `merge` is that of the
        call that it is a part of."""
        self.means = means
        self.ask = ask
        self.known = known
        self.terms = terms
        self.claim = ask.claim if isinstance(ask.claim, Claim) else None
        self.plan = self._plan()
        self.is_alone = is_alone or (self.claim is not None and not nature_of(known.dialect).has_n)
        self.has_waited = False
        """It has waited for what others were fetching."""
        self.merge = merge or Merge(means, known, self.claim)
        self._others: Others | None = None
        """Calls of the same run that it fetches for, too, once there was time for them to come."""
        self._reusing = Reusing(means, ask, known, terms)

    async def run(self) -> Answer | None:
        """The answer; None where another model has come meanwhile, or the credential was refused:
        then the call is to be admitted and pursued anew."""
        found = await self.gather(lambda: self.merge.is_confirmed(self.plan))
        if not isinstance(found, Plan):
            return found
        return self._reusing.told(await self.merge.answer(found, is_collapsed=self.has_waited))

    async def gather(self, is_done: Callable[[], Awaitable[bool]]) -> Plan | Answer | None:
        """As `run`, but for the answer to a call that lacks nothing: then its plan. Before that, it
        looks whether all `is_done`."""
        while True:
            if self.claim and await self.claim.ready():
                if not self._is_current():
                    return None
                self.plan = self.claim.plan()
            step = self.decide()
            if isinstance(step, Complete):
                if await is_done():
                    return self.plan
            elif (answer := await self.take(step)) is not None:
                return answer
            if not self._is_current():
                return None
            self.plan = self._plan(self.plan)

    def _is_current(self) -> bool:
        """Whether the model is the same, and the credential was not refused."""
        is_admitted = self.means.upstream.admits(self.ask.asker, time.monotonic())
        return is_admitted and self.means.exchange.lookup.is_present(self.known)

    def _plan(self, before: Plan | None = None) -> Plan:
        """What is at hand for the call, or by now of what was short before: what is stored, and
        what others have just brought."""
        if self.claim:
            return self.claim.plan()
        exchange, flights = self.means.exchange, self.means.flights
        stamp = exchange.lookup.stamp(self.known)

        def brought(key: bytes, is_first: bool) -> Sequence[Sample]:
            return flights.brought(key, stamp, is_first=is_first)

        more = brought if flights.any_landed else None
        if before:
            return exchange.lookup.again(before, self.terms, more)
        return exchange.lookup.plan(self.known, self.terms, more)

    def decide(self) -> Step:
        """The next step, given the plan and what others do."""
        needs, exchange = self.plan.needs, self.means.exchange
        if not needs:
            return Complete()
        if self.ask.abort:
            return Hold(self.ask.abort)
        if self._reusing.is_due:
            return Reuse()
        if self.terms.denial:
            return LookFurther()
        busy = {} if self.is_alone else self.means.flights.busy(needs)
        if busy and (self.waits_for_any or len(busy) == len(needs)):
            return Wait({key: needs[key] for key in busy}, tuple(dict.fromkeys(busy.values())))
        if self.claim and not self.is_alone and self._others is None and not self.claim.is_far():
            return Gather(tuple(needs))
        others = self._others.lacks(needs) if self._others else {}
        fetch = exchange.fetch(
            self.known, self.plan, self.terms, busy, claim=self.claim, others=others
        )
        self._others = None
        dialect, now = self.known.dialect.name, time.monotonic()
        if not fetch.is_whole and self.means.partial_calls.are_pointless(dialect, now):
            return PassOn(Reason.UNREADABLE)
        return Lead(fetch)

    async def take(self, step: Step) -> Answer | None:
        """Takes a step; None if all is to be looked at again."""
        match step:
            case Hold(abort):
                await asyncio.shield(abort)
                return None
            case Gather(keys):
                assert self.claim
                gathering = self.means.gathering
                self._others = await gathering.others(self.means.flights, self.claim, keys)
                return None
            case Reuse():
                self.plan = await self._reusing.look(self.plan)
                return None
            case LookFurther():
                return await self._look_further()
            case Wait(needs, flights):
                self.ask.joins(*flights)
                flight = await self.means.flights.wait(needs, self.claim)
                self.has_waited = True
                return self.after(flight)
            case PassOn(reason):
                return self.means.exchange.bypass(reason)
            case Lead(fetch):
                return await self.lead(fetch)
        raise AssertionError(f"no call for JSON takes the step {step}")

    async def _look_further(self) -> Answer | None:
        """Asks a shared store; a denial where that has no more."""
        if bringing := self.means.exchange.bring(self.plan, self.plan.needs, claims=False):
            brought = await bringing
            self.has_waited |= brought.is_shared
            if self._plan(self.plan).have > self.plan.have:
                return None
        return await self.means.denials.deny(self.ask, self.known, self.terms)

    # What others fetch

    def after(self, flight: Flight) -> Reply | Bypass | None:
        """The answer to one who waited for what has failed, if it is one to all who did. Else they
        go on alone, all at once: what failed for one may succeed for another, and what can never
        be stored would have them go one after the other."""
        if flight.brings or not flight.refusal:
            return None
        if flight.refusal is Reason.TOO_LARGE:
            return self.means.exchange.bypass(Reason.TOO_LARGE)
        if flight.refusal is Reason.ABORT and flight.identity == self.likeness:
            self.ask.partial = flight.answer
        if not (flight.answer and self._concerns(flight)):
            self.is_alone = True
            return None
        landed = flight.answer.landed
        total = self.known.call.total
        reply: Reply = flight.answer.reply(
            Outcome(Kind.COLLAPSED, 0, total, landed.refusal, landed.status, key=self.known.key)
        )
        self.means.exchange.counters.add(reply.outcome)
        return reply

    def _concerns(self, flight: Flight) -> bool:
        """Whether a failure would have been the call's own, too. What upstream says to one
        credential, or to another call, is nobody else's."""
        if flight.refusal is Reason.UNREACHABLE:
            return True
        if flight.identity != self.likeness or flight.credential != self.ask.head.credential:
            return False
        status = flight.answer.landed.status
        return flight.refusal is Reason.CUT or status == 429 or status >= 500

    @property
    def likeness(self) -> object:
        """Calls that are alike have one stream."""
        return self.means.exchange.likeness(self.known)

    # What it fetches itself

    async def lead(self, fetch: Fetch) -> Answer | None:
        """Fetches what is short; None where that is a part of the answer."""
        fetching = Fetching(self.means, self.ask, fetch, is_alone=self.is_alone)
        with self.means.flights.wanted(fetching.flight):
            arrived = await fetching.arrival()
        if isinstance(arrived, Brought):
            self.has_waited |= arrived.is_shared
            return None
        if self.claim:
            self.plan = self.claim.plan()
        if fetch.is_shared and not arrived.samples and arrived.landed.status in MISUNDERSTOOD:
            self.is_alone = True  # each gets the answer to its own call
            return None
        self.merge.add(arrived)
        if answer := self.merge.alone(self.plan, fetch, arrived):
            return answer
        if not self.claim:
            self.plan = self.plan.with_samples(arrived.samples)
        return None
