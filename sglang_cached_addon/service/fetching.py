"""One fetch, from its request to the store.

It goes out on a connection of its own, not on its client's, and goes on while anyone waits for it.
What has come is at hand for all who want it at once, and stored when upstream has confirmed that
it still is the same model. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

from sglang_cached_addon.core import planning, policy
from sglang_cached_addon.core.cache import Brought, Lease
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service import slices
from sglang_cached_addon.service.asking import Arrived, Ask
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Fetch, Landed, error_body
from sglang_cached_addon.service.flights import Flight, Flights
from sglang_cached_addon.service.pauses import pausing, release
from sglang_cached_addon.service.stream import Stream
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire.client import Broken, Response, Unreachable

logger = logging.getLogger("sglang_cached_addon")

GRACE_SECONDS = 1.0
"""How long the body of a stream may go on behind its terminator."""

MERGE_SECONDS = 1.0
"""How long an answer of several parts waits for the word that all are of one model."""

MAX_ANSWER = 512 << 20
"""Bytes of an answer that is kept while it comes. One that is longer, or never ends, is asked for
again as the client's own call, and passed on as it comes."""

STORE_SECONDS = 0.005
"""How long others wait while something large is stored."""

JSON = ((b"Content-Type", b"application/json"),)

_Arrival = asyncio.Future[Arrived | Brought]


class Fetcher:
    """Fetches what is short."""

    def __init__(self, exchange: Exchange, upstream: Upstream, flights: Flights) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._flights = flights

    async def fetch(
        self, ask: Ask, fetch: Fetch, flight: Flight, *, alone: bool
    ) -> Arrived | Brought:
        """Asks upstream for what is short, unless others have stored something of it. Others may
        wait for it, unless it is `alone`. What is streamed is here with its head."""
        arrived: _Arrival = asyncio.get_running_loop().create_future()
        self._flights.begin(flight, alone=alone)
        ask.flight, ask.rids = flight, fetch.sent.rids
        try:
            # mitmproxy may have tasks begin at once: nothing in `_fly` needs its own handle.
            flight.task = asyncio.create_task(self._fly(flight, ask, fetch, arrived, alone=alone))
            return await arrived
        finally:
            ask.flight = None

    async def _fly(
        self, flight: Flight, ask: Ask, fetch: Fetch, arrived: _Arrival, *, alone: bool
    ) -> None:
        lease: Lease | None = None
        try:
            if bringing := self._exchange.bring(fetch.plan, fetch.keys, claims=not alone):
                brought = await bringing
                lease = brought.lease
                if brought.is_shared or self._has_more(fetch):
                    _tell(arrived, brought)
                    return
            landing = await self._receive(flight, ask, fetch, arrived)
            if landing is None:
                _tell(arrived, Brought())
                return
            _tell(arrived, landing)
            await self._keep(flight, ask, fetch, landing)
        except (Unreachable, Broken) as e:
            self._fail(flight, e, arrived)
        except Exception:  # who waits would wait for ever
            logger.exception("sglang-cached: a fetch failed")
            self._fail(flight, Broken("an error in sglang-cached itself"), arrived)
        finally:
            if lease:
                lease.release()
            if flight.stream:
                flight.stream.end(complete=False)
            self._flights.end(flight)
            arrived.cancel()

    def _has_more(self, fetch: Fetch) -> bool:
        """Whether more is at hand than when a fetch was planned."""
        return self._exchange.lookup.again(fetch.plan, fetch.terms).have > fetch.plan.have

    async def _receive(
        self, flight: Flight, ask: Ask, fetch: Fetch, arrived: _Arrival
    ) -> Arrived | None:
        """What upstream answers; the events of a stream are passed on as they come. None: it is of
        no use, as what is there is of another model."""
        self._upstream.watch(ask.credential_headers)
        started = time.monotonic()
        asked = ask.body if fetch.body is None else fetch.body
        async with self._upstream.client.open(
            ask.head.method, ask.head.path, ask.fields, asked
        ) as response:
            shown = (*ask.credential_headers, *ask.routing_headers)
            self._upstream.heard(ask.asker, shown, response.status, time.monotonic())
            flight.greeting = response.greeting
            if flight.stream and _is_stream(response):
                if self._is_of_two(fetch):
                    return None
                flight.stream.open()
                _tell(arrived, Arrived(response.headers, is_stream=True))
                return await self._relay(flight, ask, flight.stream, fetch, response, started)
            body = BytesIO()
            async for piece in response.pieces():
                body.write(piece)
                if body.tell() > MAX_ANSWER:
                    too_large = Landed(response.status, refusal=Reason.TOO_LARGE)
                    return self._land(flight, fetch, Arrived(response.headers, too_large), started)
        return self._land(flight, fetch, await self._read(fetch, response, body), started)

    async def _read(self, fetch: Fetch, response: Response, body: BytesIO) -> Arrived:
        """What an answer comes to that is no stream."""
        is_large = fetch.known.call.total >= policy.LARGE_SAMPLES or body.tell() > slices.LARGE
        if not is_large:
            return Arrived(response.headers, self._exchange.land(fetch, response.status, body))

        def land() -> Landed:
            try:
                return self._exchange.land(fetch, response.status, body, pausing())
            finally:
                release()

        # Others have their turn meanwhile.
        return Arrived(response.headers, await asyncio.to_thread(land))

    async def _relay(
        self,
        flight: Flight,
        ask: Ask,
        stream: Stream,
        fetch: Fetch,
        response: Response,
        started: float,
    ) -> Arrived:
        """Publishes the events of a stream, and reads what they come to."""
        relay = self._exchange.relay(fetch)
        pieces, is_merged = response.pieces(), fetch.plan.have > 0
        landing: Arrived | None = None
        size = 0
        flight.refusal = Reason.CUT  # until it is done
        try:
            async for data in pieces:
                size += len(data)
                events = relay.feed(data)
                if relay.is_done and is_merged:
                    await self._confirmed(fetch, ask)
                if is_merged and self._is_of_two(fetch):
                    raise Broken("the model has changed, and some of the answer is the former's")
                if relay.is_in_pieces and is_merged:
                    # Its choices have the numbers of stored ones.
                    raise Broken("an event of the stream is too long to be put behind stored ones")
                if relay.is_done:
                    if size > slices.LARGE:  # others have their turn meanwhile
                        landed = await asyncio.to_thread(self._exchange.land_stream, fetch, relay)
                    else:
                        landed = self._exchange.land_stream(fetch, relay)
                    # Who has the last word and repeats the call finds it here.
                    arrival = Arrived(response.headers, landed=landed)
                    landing = self._land(flight, fetch, arrival, started)
                    stream.tokens = planning.tokens(fetch.plan, landing.samples)
                stream.publish(events, is_last=landing is not None)
                if landing:
                    break
                if stream.is_full:
                    await stream.room(lambda: flight.clients)
            if landing:  # there is nothing more to be waited for, be it that the body never ends
                async with asyncio.timeout(GRACE_SECONDS):
                    async for data in pieces:
                        stream.publish(relay.feed(data))
        except (Broken, TimeoutError):
            if landing is None:
                stream.publish(relay.remains())
                raise
        stream.publish(relay.remains())
        stream.end(complete=True)  # be it too early, it ended in good order
        if landing is None:
            cut = Arrived(response.headers, landed=Landed(200, refusal=Reason.CUT))
            landing = self._land(flight, fetch, cut, started)
        return landing

    def _is_of_two(self, fetch: Fetch) -> bool:
        """Whether what comes now is put behind samples of another model."""
        return fetch.plan.have > 0 and not self._exchange.lookup.is_present(fetch.known)

    async def _confirmed(self, fetch: Fetch, ask: Ask) -> None:
        """Waits a moment for upstream to say whether it is the model that the stored choices are
        of."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MERGE_SECONDS):
                await self._upstream.confirm(fetch.stamp.model_version, ask.credential_headers)

    def _land(self, flight: Flight, fetch: Fetch, arrived: Arrived, started: float) -> Arrived:
        """What upstream has said is at hand from now on, for all who want it."""
        landed = arrived.landed
        generations = landed.split.generations if landed.split else ()
        seconds = time.monotonic() - started
        samples = tuple(planning.samples(generations, time.time(), seconds))
        arrived = replace(arrived, samples=samples)
        self._exchange.counters.samples_from_upstream += len(samples)
        flight.refusal, flight.answer = landed.refusal, arrived
        brings = {} if landed.refusal else planning.by_key(fetch.plan, samples)
        self._flights.land(flight, brings)
        return arrived

    async def _keep(self, flight: Flight, ask: Ask, fetch: Fetch, arrived: Arrived) -> None:
        """Stores what has come, if upstream still is the model that it was."""
        if arrived.landed.refusal is Reason.OTHER_WEIGHTS:
            self._upstream.doubt()
        if arrived.landed.refusal or not arrived.samples:
            return
        reason = await self._upstream.confirm(
            fetch.stamp.model_version, ask.credential_headers, flight.greeting
        )
        reason = reason or await self._store(flight, fetch, arrived)
        if reason:
            self._exchange.counters.not_stored[reason] += 1
            logger.info("sglang-cached: an answer was not stored (%s)", reason)

    async def _store(self, flight: Flight, fetch: Fetch, arrived: Arrived) -> Reason | None:
        """Stores what is kept, and lets others have their turn where it is much; why it is not, or
        not all of it."""
        begun, pause = time.monotonic(), pausing()
        for addition, reason in self._exchange.commits(fetch, arrived.samples):
            if reason:
                return reason
            if addition.is_last:
                self._flights.settle(flight, (addition.key,))
            if time.monotonic() > begun + STORE_SECONDS:
                pause()
                # Who only waits for hits does not wait for the disk, but this does.
                while room := self._exchange.room():
                    await room
                await asyncio.sleep(0)
                begun = time.monotonic()
        return None

    def _fail(self, flight: Flight, error: Unreachable | Broken, arrived: _Arrival) -> None:
        """There is no answer, or not all of it."""
        is_lost = isinstance(error, Unreachable)
        if is_lost:
            self._upstream.seen(False)
        if flight.has_landed:
            return
        body = unreachable(self._upstream.url, str(error))
        flight.refusal = Reason.UNREACHABLE if is_lost else Reason.CUT
        flight.answer = Arrived(JSON, Landed(502, body, refusal=flight.refusal))
        _tell(arrived, flight.answer)


def unreachable(url: str, message: str) -> bytes:
    """The body of a 502, where upstream gives no answer."""
    text = (
        f"sglang-cached cannot get an answer from {url}: {message}. "
        "Check that the server runs, and that --sglang-url names it; "
        "stored answers are served meanwhile."
    )
    return error_body(502, "BadGateway", text)


def _tell(arrived: _Arrival, landing: Arrived | Brought) -> None:
    if not arrived.done():  # nobody may wait for it any more, or not for the end of a stream
        arrived.set_result(landing)


def _is_stream(response: Response) -> bool:
    fields = {name.lower(): value for name, value in response.headers}
    media_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    is_plain = b"content-encoding" not in fields
    return response.status == 200 and media_type == b"text/event-stream" and is_plain
