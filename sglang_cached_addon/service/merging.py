"""One answer of several parts: what was stored, what others have just brought, and what the call
has fetched itself.

Puts the answer together once all parts are known to be of one model, which upstream confirms
behind each fetch. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sglang_cached_addon.core import planning
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.call_head import Fields
from sglang_cached_addon.core.outcome import NOTHING, Kind, Outcome, Saved
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.asking import Arrived, Reply
from sglang_cached_addon.service.claims import Claim
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import Bypass, Fetch, Hit, Known
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.reducing import ignored

_T = TypeVar("_T")

MERGE_SECONDS = 1.0
"""How long an answer of several parts waits for the word that all are of one model."""


# With these, upstream may have misunderstood what it was asked for, and the client's own call may
# be answered all the same.
MISUNDERSTOOD = (200, 400, 422)


class Merge:
    """The answer to one call, as its parts come."""

    def __init__(self, means: Means, known: Known, claim: Claim | None = None) -> None:
        self._exchange = means.exchange
        self._flights = means.flights
        self._partial_calls = means.partial_calls
        self._known = known
        self._claim = claim
        self.headers: Fields | None = None
        """The header fields of what the call has fetched itself last; None if it has not."""
        self.refusal: Reason | None = None
        """Why something of that is not stored."""
        self._own: list[Sample] = []
        """The samples that it has fetched itself."""
        self._has_waited = False
        """Upstream had its time to confirm the parts."""

    def add(self, arrived: Arrived) -> None:
        """The call has fetched a part of its answer itself."""
        self.headers = arrived.headers
        self.refusal = self.refusal or arrived.landed.refusal
        self._own += [sample for _, sample in arrived.samples]

    def saved(self, plan: Plan) -> Saved:
        """What the samples save that the call has not fetched itself."""
        own = set(map(id, self._own))
        return Saved.of(sample for sample in plan.samples() if id(sample) not in own)

    def outcome(self, plan: Plan, reason: Reason | None = None) -> Outcome:
        """The outcome of a call that has fetched something itself, or is about to."""
        have = self.saved(plan).samples
        kind = Kind.PARTIAL if have else Kind.MISS
        places = b"" if reason else planning.shown_places(plan)
        total, key = self._known.call.total, self._known.key
        detail = ignored(self._known, plan) if self._known.left_out else ""
        return Outcome(kind, have, total, reason, key=key, places=places, detail=detail)

    async def is_confirmed(self, plan: Plan) -> bool:
        """Whether an answer of a plan that lacks nothing may be given. Not where upstream had to
        confirm something first: then all is to be looked at anew."""
        if not self._has_waited and (tasks := self._unconfirmed(plan)):
            self._has_waited = True
            await asyncio.wait(tasks, timeout=MERGE_SECONDS)
            return False
        return True

    async def answer(self, plan: Plan, *, is_collapsed: bool) -> Hit | Reply:
        """The answer of a plan that lacks nothing; `is_collapsed`: the call has waited for what
        others were fetching."""
        exchange, known = self._exchange, self._known
        if self.headers is not None:

            def told() -> tuple[Outcome, Saved, bytes]:
                body = exchange.lookup.answer(known, plan)
                return self.outcome(plan, self.refusal), self.saved(plan), body

            outcome, saved, body = await _beside(plan, told)
            exchange.counters.add(outcome, saved)
            return Reply(200, self.headers, body, outcome)
        hit = await _beside(plan, lambda: exchange.lookup.hit(known, plan))
        if not is_collapsed:
            exchange.counters.hit(hit.saved)
            return hit
        is_new = self._claim and self._claim.has_new  # generated for it, together with others
        return collapsed(exchange, hit, NOTHING if is_new else hit.saved)

    def alone(self, plan: Plan, fetch: Fetch, arrived: Arrived) -> Reply | Bypass | None:
        """What has come, where it is not a part of the answer but all of it, or none."""
        landed, dialect = arrived.landed, self._known.dialect.name
        exchange, partial_calls = self._exchange, self._partial_calls
        if landed.refusal is Reason.TOO_LARGE:
            return exchange.bypass(Reason.TOO_LARGE)
        if landed.split is None and not fetch.is_whole and landed.status in MISUNDERSTOOD:
            # It may ignore `n`, or not take a list: what it makes of the client's own call is the
            # client's to know.
            # A row that nothing is generated for is refused for itself, whatever it stands with.
            if landed.status == 200 or not self._known.call.is_pure:
                partial_calls.failed(dialect, time.monotonic())
            return exchange.bypass(Reason.UNREADABLE)
        if fetch.asks_more and landed.status in (400, 422):
            # An older vLLM refuses fields that it does not know.
            return exchange.bypass(Reason.UNREADABLE)
        if not fetch.is_whole and landed.refusal in (Reason.OTHER_WEIGHTS, Reason.MIXED_WEIGHTS):
            return exchange.bypass(landed.refusal)
        is_repeated = bool(self._known.call.rows)
        if not fetch.is_whole and is_repeated and landed.refusal is Reason.SHARED_USAGE:
            # Nobody knows how much of it comes once more, for what the list has more than once.
            return exchange.bypass(landed.refusal)
        if not fetch.is_whole and landed.split:
            partial_calls.worked(dialect)
            return None
        outcome = self.outcome(plan, landed.refusal)
        reply = arrived.reply(replace(outcome, status=landed.status))
        exchange.counters.add(reply.outcome)
        return reply

    def confirming(self, plan: Plan) -> set[asyncio.Task[None]]:
        """The fetches that have brought something of a plan, and are not yet confirmed to be of the
        model that the call is for."""
        return {flight.task for flight in self._landed(plan) if flight.task}

    def _unconfirmed(self, plan: Plan) -> set[asyncio.Task[None]]:
        """Those of them whose samples are together with others in the answer."""
        flights = self._landed(plan)
        if len(flights) == 1:
            (flight,) = flights
            ids = {id(sample) for samples in flight.brings.values() for sample in samples}
            if all(id(sample) in ids for sample in plan.samples()):
                return set()
        return self.confirming(plan)

    def _landed(self, plan: Plan) -> set[Flight]:
        landed = self._flights.landed(set(plan.keys))
        return {flight for flight in landed if flight.task and not flight.task.done()}


def collapsed(exchange: Exchange, hit: Hit, saved: Saved) -> Hit:
    """Counts a hit that is one only since the call has waited for what others were fetching."""
    outcome = replace(hit.outcome, kind=Kind.COLLAPSED)
    exchange.counters.add(outcome, saved)
    return replace(hit, outcome=outcome)


async def _beside(plan: Plan, make: Callable[[], _T]) -> _T:
    """What this makes of a plan; of a large one, beside the event loop."""
    return await asyncio.to_thread(make) if plan.is_large else make()
