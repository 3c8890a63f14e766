"""How a call of a run comes to its samples, before anything is fetched for it.

Where all that it lacks is stored, it has its answer at once; else it is given a claim, to take what
others bring and what is generated for it. Knows the runs of this process from those that several
proxies share.
"""

from __future__ import annotations

from math import inf
from typing import cast

from sglang_cached_addon.core.policy import Terms
from sglang_cached_addon.core.runs import Run
from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.service.claims import Drawn, LocalClaim
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Hit, Known
from sglang_cached_addon.service.flights import Flights
from sglang_cached_addon.service.gathering import view_of
from sglang_cached_addon.service.runs import Log, Runs, SharedRun, SharedRuns
from sglang_cached_addon.service.shared_claims import SharedClaim


class Drawing:
    """Has calls of runs take their samples."""

    def __init__(self, runs: Runs | SharedRuns, exchange: Exchange, flights: Flights) -> None:
        self._runs = runs
        self._exchange = exchange
        self._flights = flights

    def draw(self, ask: Ask, known: Known, terms: Terms, now: float) -> Hit | Known:
        """Has a call take its samples, and let go of those that it had before: the answer, if
        nothing is lacking."""
        run: Run | SharedRun
        if former := ask.claim:
            former.settle(is_delivered=False)
            run = former.run
        else:
            run = self._runs.use(ask.head.run, now)
        if isinstance(self._runs, Runs):
            return self._from_here(ask, known, terms, cast(Run, run), self._runs.log)
        lookup = self._exchange.lookup
        view, look = view_of(lookup, self._flights, known), self._exchange.look
        ask.claim = SharedClaim(cast(SharedRun, run), known, view, lookup.pool, look, terms.since)
        return known  # to ask the server takes time

    def _from_here(self, ask: Ask, known: Known, terms: Terms, run: Run, log: Log) -> Hit | Known:
        lookup = self._exchange.lookup
        has_landed = self._flights.any_landed  # then what is at hand is not all that is there
        if not (has_landed or terms.since > -inf or run.is_fresh):
            places = run.places.lowest(known.pools, known.call.n)
            if hit := lookup.draw(known, places):
                ask.claim = Drawn(log, run, known.pools, places)
                return hit
        view = view_of(lookup, self._flights, known)
        ask.claim = claim = LocalClaim(log, run, known, view, lookup.size, terms.since)
        if has_landed:
            return known  # what is of several parts may wait to be confirmed
        plan = claim.plan()
        return known if plan.needs or plan.is_large else lookup.hit(known, plan)
