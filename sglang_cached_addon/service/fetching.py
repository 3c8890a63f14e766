"""One fetch of what is short, from its request to the store.

It goes out on a connection of its own, not on its client's, and goes on while anyone waits for it.
What has come is at hand for all who want it at once; `storing` stores it. What is different of a
stream is in `stream_fetching`. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, replace
from io import BytesIO

from sglang_cached_addon.core import planning, policy, request_ids
from sglang_cached_addon.core.cache import Brought, Lease
from sglang_cached_addon.core.call_head import CallHeads
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.base import nature_of
from sglang_cached_addon.service import error_bodies, slices
from sglang_cached_addon.service.aborting import Aborts
from sglang_cached_addon.service.asking import Arrived, Ask
from sglang_cached_addon.service.counting import Counting
from sglang_cached_addon.service.denials import Denials
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import JSON, Fetch, Landed
from sglang_cached_addon.service.flight import Errand, Flight
from sglang_cached_addon.service.flights import Flights
from sglang_cached_addon.service.gathering import Gathering
from sglang_cached_addon.service.partial import PartialCalls
from sglang_cached_addon.service.pauses import beside
from sglang_cached_addon.service.spelling import Spelling
from sglang_cached_addon.service.storing import Storing
from sglang_cached_addon.service.stream import Stream
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire.client import Unreachable
from sglang_cached_addon.wire.connection import Broken
from sglang_cached_addon.wire.observing import Answer, Killed

logger = logging.getLogger("sglang_cached_addon")

MAX_ANSWER = 512 << 20
"""Bytes of an answer that is kept while it comes. One that is longer, or never ends, is asked for
again as the client's own call, and passed on as it comes."""


@dataclass(frozen=True, slots=True)
class Means:
    """What all calls and fetches of a service work with."""

    exchange: Exchange
    upstream: Upstream
    flights: Flights
    storing: Storing
    partial_calls: PartialCalls
    denials: Denials
    gathering: Gathering
    spelling: Spelling
    counting: Counting
    aborts: Aborts
    heads: CallHeads


class Fetching:
    """One fetch."""

    def __init__(
        self,
        means: Means,
        ask: Ask,
        fetch: Fetch,
        stream: Stream | None = None,
        *,
        is_alone: bool,
    ) -> None:
        """The fetch begins with `arrival`. Others may wait for it, unless it `is_alone`."""
        self.flight = Flight(
            fetch.keys,
            means.exchange.likeness(fetch.known),
            stamp=fetch.stamp,
            credential=ask.head.credential,
            stream=stream,
            is_addition=not fetch.terms.replaces,
            origins=fetch.origins,
            errand=Errand(
                id=request_ids.of_fetch(ask.id, secrets.token_hex(4)) or None,
                api=fetch.known.dialect.name,
                path=ask.head.path,
                model=fetch.known.model,
                since=time.time(),
                samples=fetch.sent.total,
                run=ask.head.run,
            ),
        )
        """What others see of the fetch."""
        self._ask, self._fetch = ask, fetch
        self._exchange = means.exchange
        self._upstream = means.upstream
        self._means = means
        self._nature = nature_of(fetch.known.dialect)
        self._is_calm = means.aborts.watch()
        """Tells whether nothing came to upstream since that may have ended the call there."""
        self._is_alone = is_alone
        self._began_at = 0.0
        """When upstream was asked: a monotonic time in seconds."""
        self._is_altered = False
        """Others have changed what was asked, or what was answered."""
        self._arrival: asyncio.Future[Arrived | Brought] = asyncio.Future()
        """Done when the client that asked can be answered, or has to look anew."""

    async def arrival(self) -> Arrived | Brought:
        """Asks upstream for what is short, unless others have stored something of it. What is
        streamed is here with its head."""
        ask, flight = self._ask, self.flight
        self._means.flights.begin(flight, alone=self._is_alone)
        ask.flight, ask.rids = flight, self._fetch.sent.rids
        ask.joins(flight)
        try:
            # mitmproxy may have tasks begin at once: nothing in `_fly` needs its own handle.
            flight.task = asyncio.create_task(self._fly())
            return await self._arrival
        finally:
            ask.flight = None

    async def _fly(self) -> None:
        """The whole way of the fetch."""
        lease: Lease | None = None
        fetch = self._fetch
        try:
            if bringing := self._exchange.bring(fetch.plan, fetch.keys, claims=not self._is_alone):
                brought = await bringing
                lease = brought.lease
                if brought.is_shared or self._has_more():
                    self._tell(brought)
                    return
            arrived = await self._receive()
            self._tell(arrived or Brought())
            if arrived:
                await self._means.storing.keep(fetch, self.flight, self._ask.credential_headers)
        except (Unreachable, Broken) as e:
            self._fail(e)
        except Exception:  # who waits would wait for ever
            logger.exception("sglang-cached: a fetch failed")
            self._fail(Broken("an error in sglang-cached itself"))
        finally:
            if lease:
                lease.release()
            if self.flight.stream:
                self.flight.stream.end(complete=False)
            self._means.flights.end(self.flight)
            self._arrival.cancel()

    def _has_more(self) -> bool:
        """Whether more is at hand than when the fetch was planned."""
        plan, claim = self._fetch.plan, self._fetch.claim
        if claim:
            return claim.can_draw()
        return self._exchange.lookup.again(plan, self._fetch.terms).have > plan.have

    def _tell(self, arrived: Arrived | Brought) -> None:
        """Lets the client that asked go on."""
        if not self._arrival.done():  # it may have left, or not wait for the end of a stream
            self._arrival.set_result(arrived)

    async def _receive(self) -> Arrived | None:
        """What upstream answers; None where it is of no use: what is there is of another model, or
        upstream was asked in a manner that it does not understand."""
        ask, fetch, upstream = self._ask, self._fetch, self._upstream
        upstream.confirming.watch(ask.credential_headers)
        self._began_at = time.monotonic()
        body = ask.body if fetch.body is None else fetch.body
        fields = request_ids.shown(ask.fields, self.flight.id)
        sender = upstream.sender(lambda: fetch.caption(self.flight.id, ask.head.run))
        with self._means.counting.beside(ask, fetch.sent.texts) as counts:
            async with sender.open(ask.head.method, ask.head.path, fields, body) as response:
                is_same = response.sent is None or ask.is_shown(response.sent, self._means.heads)
                self._is_altered = response.is_altered or not is_same
                self._began_at += response.held  # which upstream has not worked for
                if not self._is_altered:
                    shown = (*ask.credential_headers, *ask.routing_headers)
                    upstream.heard(ask.asker, shown, response.status, time.monotonic())
                self._exchange.counters.upstream_answers[response.status] += 1
                self.flight.greeting = response.greeting
                found = await self._take(response)
            if not isinstance(found, BytesIO):
                return found
            if counts and response.status == 200:
                fetch = replace(fetch, sent=replace(fetch.sent, tokens=await counts))
        landed = await self._read(fetch, response.status, found)
        is_misunderstood = self._exchange.learn(fetch, landed)
        return None if is_misunderstood else self._land(Arrived(response.headers, landed))

    async def _take(self, response: Answer) -> BytesIO | Arrived | None:
        """The body of an answer, to be read when its connection is free; or what was landed on the
        way."""
        body = BytesIO()
        async for piece in response.pieces():
            body.write(piece)
            if body.tell() > MAX_ANSWER:
                too_large = Landed(response.status, refusal=Reason.TOO_LARGE)
                return self._land(Arrived(response.headers, too_large))
        return body

    async def _read(self, fetch: Fetch, status: int, body: BytesIO) -> Landed:
        """What the answer comes to."""
        exchange = self._exchange
        if fetch.known.call.total < policy.LARGE_SAMPLES and body.tell() <= slices.LARGE:
            return exchange.land(fetch, status, body)
        return await beside(lambda pause: exchange.land(fetch, status, body, pause))

    def _land(self, arrived: Arrived) -> Arrived:
        """What upstream has said is at hand from now on, for all who want it."""
        landed, flight = arrived.landed, self.flight
        if not (landed.refusal or self._nature.shows_aborts or self._is_calm()):
            landed = replace(landed, refusal=Reason.ABORT)
        generations = landed.split.generations if landed.split else ()
        times = time.time(), time.monotonic() - self._began_at
        samples = tuple(planning.samples(generations, *times, self._fetch.known.origins))
        if self._is_altered:
            landed = replace(landed, refusal=landed.refusal or Reason.ALTERED)
        self._exchange.counters.samples_from_upstream += len(samples)
        arrived = replace(arrived, landed=landed, samples=samples)
        flight.refusal, flight.answer = landed.refusal, arrived
        brings = {} if landed.refusal else planning.by_key(self._fetch.plan, samples)

        def first() -> None:
            if claim := self._fetch.claim:
                new = ((self._fetch.plan.keys[item], sample) for item, sample in samples)
                claim.generated(new, is_alone=self._is_alone)

        self._means.flights.land(flight, brings, first)
        return arrived

    def _fail(self, error: Unreachable | Broken) -> None:
        """There is no answer, or not all of it."""
        is_lost = isinstance(error, Unreachable)
        if is_lost:
            self._upstream.seen(False)
        if not self.flight.is_flying:
            return
        reason = Reason.UNREACHABLE if is_lost else Reason.CUT
        body = error_bodies.unreachable(self._upstream.url, str(error))
        if isinstance(error, Killed):
            reason, body = Reason.KILLED, error_bodies.killed(self._upstream.url)
        self._exchange.counters.upstream_errors[reason] += 1
        self.flight.refusal = reason
        self.flight.answer = Arrived(JSON, Landed(502, body, refusal=reason))
        self._tell(self.flight.answer)
