"""Calls for streams: one is fetched, or that of another call is read along.

Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace

from sglang_cached_addon.core.cache import Brought
from sglang_cached_addon.core.call import Part
from sglang_cached_addon.core.outcome import NOTHING, Kind, Outcome, Saved
from sglang_cached_addon.core.policy import Reason, Terms
from sglang_cached_addon.dialects.base import generating
from sglang_cached_addon.service import aborted
from sglang_cached_addon.service.asking import Answer, Ask, Streamed
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import Fetch, Known
from sglang_cached_addon.service.flight import Flight
from sglang_cached_addon.service.pursuit import Pursuit
from sglang_cached_addon.service.reducing import ignored_along
from sglang_cached_addon.service.relay import Event, View
from sglang_cached_addon.service.steps import Follow, Lead, PassOn, Step
from sglang_cached_addon.service.stream import Reader, Stream
from sglang_cached_addon.service.stream_fetching import StreamFetching

logger = logging.getLogger("sglang_cached_addon")


class StreamPursuit(Pursuit):
    """One call for a stream, under one model."""

    waits_for_any = True

    def __init__(
        self, means: Means, ask: Ask, known: Known, terms: Terms, *, is_alone: bool
    ) -> None:
        """One of a run is alone: each call has a sample of its own."""
        super().__init__(means, ask, known, terms, is_alone=is_alone or ask.claim is not None)

    def decide(self) -> Step:
        is_chunkable = self.ask.is_chunkable
        may_follow = is_chunkable and not (self.is_alone or self.terms.denial)
        if may_follow and self.plan.needs and (flight := self.means.flights.find(self.likeness)):
            return Follow(flight)
        step = super().decide()
        if isinstance(step, Lead) and not is_chunkable:
            return PassOn(Reason.HTTP_1_0)
        return step

    async def take(self, step: Step) -> Answer | None:
        if isinstance(step, Follow):
            return await self._follow(step.flight)
        return await super().take(step)

    async def _follow(self, flight: Flight) -> Answer | None:
        """The answer that another call fetches; None if it does not come to one."""
        known, ask, stream = self.known, self.ask, flight.stream
        assert stream
        detail = ignored_along(known, flight)
        outcome = Outcome(Kind.COLLAPSED, 0, known.call.total, key=known.key, detail=detail)
        self.has_waited = True
        ask.joins(flight)
        with ExitStack() as exits:
            exits.enter_context(self.means.flights.wanted(flight))
            reader = stream.reader()  # from now on each event
            exits.callback(reader.close)

            def end(is_complete: bool) -> Outcome:
                is_short = ask.is_aborted and not reader.has_all
                done, saved = outcome, NOTHING
                if (is_complete or reader.has_all) and not is_short:
                    saved = Saved(known.call.total, stream.tokens)
                else:
                    done = replace(outcome, reason=Reason.ABORT if is_short else Reason.CUT)
                self.means.exchange.counters.add(done, saved)
                return done

            if await stream.opened():
                pieces = self._show(stream, reader)
                return Streamed((), pieces, outcome, end, exits.pop_all())
        return self.after(flight)

    async def lead(self, fetch: Fetch) -> Answer | None:
        """Fetches a stream, unless others have stored something of it."""
        plan, ask, means = self.plan, self.ask, self.means
        fetching = StreamFetching(means, ask, fetch, is_alone=self.is_alone)
        flight, stream = fetching.flight, fetching.stream
        outcome = self.merge.outcome(plan)
        with ExitStack() as exits:
            # Held for as long as the client reads.
            exits.enter_context(means.flights.wanted(flight))
            reader = stream.reader()  # from the first event on
            exits.callback(reader.close)

            def end(is_complete: bool) -> Outcome:
                is_complete = is_complete or reader.has_all
                reason = flight.refusal if is_complete else Reason.CUT
                is_short = ask.is_aborted and not reader.has_all
                done = replace(outcome, reason=Reason.ABORT if is_short else reason)
                saved = Saved.of(plan.samples()) if is_complete else Saved()
                means.exchange.counters.add(done, saved)
                return done

            arrived = await fetching.arrival()
            if isinstance(arrived, Brought):
                self.has_waited |= arrived.is_shared
                return None
            if arrived.is_stream:
                ask.flight = flight
                pieces = self._show(stream, reader)
                opened = replace(outcome, is_open=True)
                return Streamed(arrived.headers, pieces, opened, end, exits.pop_all())
        return self.merge.alone(plan, fetch, arrived)

    async def _show(self, stream: Stream, reader: Reader) -> AsyncIterator[list[bytes]]:
        """A stream in a client's own words."""
        known, ask = self.known, self.ask
        view, ask.stream = View(generating(known.dialect), known.call), stream
        states: dict[int, Event] = {}

        def show(events: list[Event]) -> list[bytes]:
            for event in events:
                if event.part is Part.STATE:
                    states[event.choice] = event
                else:  # it has not all of the choice
                    states.pop(event.choice, None)
            return view.show(events)

        def takes() -> bool:
            if ask.outlet is None or ask.outlet.is_full:
                return False
            try:
                if shown := show(reader.take()):
                    ask.outlet.write_events(shown)
            except Exception:  # it is this client's alone
                logger.exception("sglang-cached: a stream could not be written")
                reader.close()
                return False
            return reader.is_level

        async for events in reader.read(lambda: ask.is_aborted, takes):
            yield show(events)
        if ask.is_aborted and not reader.has_all:
            seen = {choice: view.show([event])[0] for choice, event in states.items()}
            rid = self.means.exchange.mint()
            yield aborted.events(
                known, rid, time.time(), seen, stream.stored, has_begun=reader.place > 0
            )
