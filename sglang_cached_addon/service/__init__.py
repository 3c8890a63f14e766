"""A client's call from its head and body to its answer: one way in, `Service.receive`.

Acts on what `exchange` decides: a hit is given at once; all else is admitted by upstream, and
pursued. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import replace
from math import inf
from typing import Any

from sglang_cached_addon.core import directives, policy
from sglang_cached_addon.core.call_head import CallHeads, by_name
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Mode, Reason, Terms
from sglang_cached_addon.service import aborted, lists
from sglang_cached_addon.service.aborting import Aborts
from sglang_cached_addon.service.asking import Answer, Ask, Reply, Streamed
from sglang_cached_addon.service.counting import Counting
from sglang_cached_addon.service.denials import Denials, Nearest
from sglang_cached_addon.service.drawing import Drawing
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import EVENTS, JSON, Bypass, Hit, Known, model_of
from sglang_cached_addon.service.flights import Flights
from sglang_cached_addon.service.gathering import Gathering
from sglang_cached_addon.service.lists import Lists
from sglang_cached_addon.service.partial import PartialCalls
from sglang_cached_addon.service.pursuit import Pursuit
from sglang_cached_addon.service.runs import Runs, SharedRuns
from sglang_cached_addon.service.spelling import Spelling
from sglang_cached_addon.service.storing import Storing
from sglang_cached_addon.service.stream_pursuit import StreamPursuit
from sglang_cached_addon.upstream import Upstream

ATTEMPTS = 3
"""How often a call is pursued before it is passed on, as the model changes again and again."""


class Service:
    """Answers calls."""

    def __init__(
        self,
        exchange: Exchange,
        upstream: Upstream,
        heads: CallHeads | None = None,
        *,
        mode: Mode = Mode.READWRITE,
        collapses: bool = True,
        nearest: Nearest | None = None,
        runs: Runs | SharedRuns | None = None,
        gathering: Gathering | None = None,
    ) -> None:
        """With `collapses`, equal calls share a fetch."""
        self.runs = runs or Runs()
        self.flights = Flights()
        self.aborts = Aborts()
        self._drawing = Drawing(self.runs, exchange, self.flights)
        self._exchange = exchange
        self._lookup = exchange.lookup
        self._upstream = upstream
        self._heads = heads or CallHeads()
        self._mode = mode
        self._default_terms = policy.terms(mode, directives.DEFAULT, 0.0)
        """Those of a call that asks for nothing special."""
        self._collapses = collapses
        self._denials = Denials(exchange, nearest)
        self.means = Means(
            exchange,
            upstream,
            self.flights,
            Storing(exchange, upstream, self.flights),
            PartialCalls(),
            self._denials,
            gathering or Gathering(),
            Spelling(upstream),
            Counting(upstream),
            self.aborts,
            self._heads,
        )
        self._lists = Lists(self.means)

    def receive(self, ask: Ask) -> Answer | Coroutine[Any, Any, Answer]:
        """The answer to a call: a hit at once, and all else as a coroutine."""
        head, terms = ask.head, self._default_terms
        if head.directives is not directives.DEFAULT:
            terms = policy.terms(self._mode, head.directives, time.time())
        if isinstance(terms, Reason):
            return self._exchange.bypass(terms)
        if len(ask.body) > lists.SHORT and self._lists.is_long(ask):
            return self._receive_list(ask, terms)
        found = self._find(ask, terms)
        if isinstance(found, Reason):
            return self._denials.let_pass(found, terms)
        ask.model = found.model
        if not self._upstream.admits(head.asker(found.model), time.monotonic()):
            return self._admit(ask, terms)
        if isinstance(found, Known) and head.run and found.draws:
            found = self._drawing.draw(ask, found, terms, time.time())
        if isinstance(found, Hit):
            self._exchange.counters.hit(found.saved)
            return found
        return self._attend(ask, found, terms)

    def _find(self, ask: Ask, terms: Terms) -> Hit | Known | Reason:
        """Looks a call up, whoever asks."""
        head = ask.head
        if head.refusal:
            return head.refusal
        return self._lookup.find(
            head.method, head.path, ask.body, terms, head.tenant, is_of_run=bool(head.run)
        )

    async def _receive_list(self, ask: Ask, terms: Terms) -> Answer:
        """Answers a call that is to be read beside the event loop."""
        calls = ask.head.refusal or await self._lists.read(ask)
        if isinstance(calls, Reason):
            return self._denials.let_pass(calls, terms)
        self._introduce(ask)
        ask.model = model_of(calls[0].body)
        for _ in range(ATTEMPTS):
            if not self._upstream.admits(ask.asker, time.monotonic()):
                shown = ask.credential_headers, ask.routing_headers
                if reason := await self._upstream.admit(ask.asker, *shown):
                    return self._denials.let_pass(reason, terms)
            is_alone = not self._collapses or terms != policy.PLAIN
            tenant = ask.head.tenant
            if len(calls) == 1:
                known = self._lists.known(ask, calls[0], tenant)
                return await self._attend(ask, known, terms)
            try:
                answer = await self._lists.answer(ask, calls, tenant, terms, is_alone=is_alone)
            except asyncio.CancelledError:  # the client has left
                self._exchange.counters.add(Outcome(Kind.MISS, 0, calls[0].total, Reason.CUT))
                raise
            if answer:
                return answer
        return self._denials.let_pass(Reason.MODEL_CHANGED, terms)

    def heard(self, ask: Ask, status: int) -> None:
        """Notes the status of upstream's answer to a call that was passed on to it."""
        self._introduce(ask)
        shown = (*ask.credential_headers, *ask.routing_headers)
        self._upstream.heard(ask.asker, shown, status, time.monotonic())

    def _introduce(self, ask: Ask) -> None:
        """Notes the header fields that upstream is shown on the client's behalf."""
        headers = by_name(ask.fields)
        ask.credential_headers = self._heads.credential_headers(headers)
        if ask.head.routing:
            ask.routing_headers = self._heads.routing_headers(headers)

    async def _admit(self, ask: Ask, terms: Terms) -> Answer:
        """Answers a call when upstream has said who it is, and that the client may ask."""
        self._introduce(ask)
        found = await self._look_again(ask, terms)
        return await self._attend(ask, found, terms) if isinstance(found, Known) else found

    async def _look_again(self, ask: Ask, terms: Terms) -> Answer | Known:
        """Looks a call up anew, when upstream has said who it is, and that the client may ask."""
        found: Hit | Known | Reason | None = await self._upstream.admit(
            ask.asker, ask.credential_headers, ask.routing_headers
        )
        now = time.time()
        found = found or self._find(ask, terms)
        if isinstance(found, Known) and ask.head.run and found.draws:
            found = self._drawing.draw(ask, found, terms, now)
        if isinstance(found, Hit):
            self._exchange.counters.hit(found.saved)
        elif isinstance(found, Reason):
            return self._denials.let_pass(found, terms)
        return found

    async def _attend(self, ask: Ask, known: Known, terms: Terms) -> Answer:
        """Pursues a call, unless the client aborts it by one of its ids."""
        self._introduce(ask)
        ask.task = asyncio.current_task()
        with ExitStack() as exits:
            if not known.call.is_pure:  # there is nothing that could break off
                exits.enter_context(self.aborts.attend(ask, known.call.rids))
            try:
                answer = await self._pursue(ask, known, terms)
            except asyncio.CancelledError:
                ask.settle(is_delivered=False)
                if not (ask.is_aborted and ask.task):  # the client has left
                    outcome = Outcome(Kind.MISS, 0, known.call.total, Reason.CUT, key=known.key)
                    self._exchange.counters.add(outcome)
                    raise
                ask.task.uncancel()
                answer = self._aborted(ask, known)
            finally:
                ask.task = None
            if isinstance(answer, Streamed):
                answer.exits.push(exits.pop_all())
        if isinstance(answer, Bypass) or (isinstance(answer, Reply) and answer.status != 200):
            ask.settle(is_delivered=False)
        return answer

    async def _pursue(self, ask: Ask, known: Known, terms: Terms) -> Answer:
        """Pursues a call, and begins anew whenever another model has come, or upstream has refused
        the credential."""
        make = StreamPursuit if known.call.stream else Pursuit
        is_alone = not self._collapses or terms != policy.PLAIN
        if ask.claim:  # nothing is replaced
            terms = replace(terms, since=-inf)
        for _ in range(ATTEMPTS):
            if answer := await make(self.means, ask, known, terms, is_alone=is_alone).run():
                return answer
            found = await self._look_again(ask, terms)
            if not isinstance(found, Known):
                return found
            known = found
        return self._denials.let_pass(Reason.MODEL_CHANGED, terms)

    def _aborted(self, ask: Ask, known: Known) -> Reply:
        """The answer to a call that was aborted while it waited: what was generated until then, as
        far as that is known."""
        outcome = Outcome(Kind.MISS, 0, known.call.total, Reason.ABORT, key=known.key)
        self._exchange.counters.add(outcome)
        samples = ask.partial.samples if ask.partial else ()
        plan, rid = self._exchange.lookup.plan(known), self._exchange.mint()
        body = aborted.answer(known, plan, rid, time.time(), samples)
        return Reply(200, EVENTS if known.call.stream else JSON, body, outcome)
