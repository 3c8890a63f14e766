"""A client's call from admission to answer: who asks upstream, and who waits for whom.

Acts on what `exchange` decides. A fetch goes out on a connection of its own, not on its
client's: it goes on while anyone waits for it, and ends when nobody does. What has come is
stored once upstream has confirmed that it still is the same model. Knows asyncio, and nothing
of mitmproxy.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from sglang_cached_addon import admission, cache, directives, policy, wire
from sglang_cached_addon.cache import Brought, Lease, Plan, Sample
from sglang_cached_addon.client import Broken, Headers, Response, Unreachable
from sglang_cached_addon.dialects.base import Part
from sglang_cached_addon.exchange import (
    Bypass,
    Exchange,
    Fetch,
    Hit,
    Known,
    Landed,
    Request,
    error_body,
)
from sglang_cached_addon.inflight import Flight, Flights, Reader, Stream
from sglang_cached_addon.outcome import Kind, Outcome, Saved
from sglang_cached_addon.policy import Mode, Reason, Terms
from sglang_cached_addon.relay import Event, View
from sglang_cached_addon.routing import KeyHeaders
from sglang_cached_addon.upstream import Upstream

logger = logging.getLogger("sglang_cached_addon")

# What the next equal call would bring, too: there is no use in waiting for one another.
_LASTING = {
    Reason.UNREADABLE,
    Reason.UNFINISHED,
    Reason.ERROR,
    Reason.NO_USAGE,
    Reason.LOST_LOGPROBS,
    Reason.OTHER_WEIGHTS,
}

_JSON = ((b"Content-Type", b"application/json"),)
_EVENTS = ((b"Content-Type", wire.EVENT_STREAM.encode()),)

_DENIALS = {
    Reason.ONLY_IF_CACHED: "not stored, and the request says only-if-cached.",
    Reason.OFFLINE: "not stored, and sglang-cached runs with --mode offline.",
}


@dataclass(slots=True, eq=False)
class Ask:
    """One client's request for samples."""

    request: Request
    fields: Headers
    """Its header fields as they came, to be sent on."""
    is_chunkable: bool = True
    """The client can be answered piece by piece."""
    is_local: bool = False
    """The client is on this machine."""
    credential: bytes = b""
    tenant: bytes = b""
    """What is part of its keys, beside its body."""
    shown: Headers = ()
    """The fields that the credential is made of."""
    flight: Flight | None = None
    """That it leads."""
    rids: dict[str, str] | None = None
    """What upstream calls the ids that the client gave."""
    task: asyncio.Task[Any] | None = None
    """That waits for its answer."""
    stream: Stream | None = None
    """That it reads."""
    trial: asyncio.Future[None] | None = None
    """Under way is a request to abort it."""
    is_aborted: bool = False
    """Its client has asked for that, and the fetch goes on for others."""


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """A whole answer that is not from the store alone."""

    status: int
    headers: Headers
    body: bytes
    outcome: Outcome


class Streamed:
    """An answer that comes in pieces."""

    def __init__(
        self,
        headers: Headers,
        pieces: AsyncIterator[list[bytes]],
        outcome: Outcome,
        end: Callable[[bool], Outcome],
        exits: ExitStack,
    ) -> None:
        self.headers = headers
        """Upstream's; none where another's fetch is read."""
        self.pieces = pieces
        """One event each. Raises `Cut` where the stream breaks off."""
        self.outcome = outcome
        """As far as it is known."""
        self.exits = exits
        """What is to be let go of at the end."""
        self._end: Callable[[bool], Outcome] | None = end

    def close(self, is_complete: bool = False) -> None:
        """The client has all of it, or wants no more. May be called again, to no effect."""
        end, self._end = self._end, None
        if end:
            self.exits.close()
            self.outcome = end(is_complete)


Answer = Hit | Bypass | Reply | Streamed


@dataclass(frozen=True, slots=True, eq=False)
class _Arrived:
    """What upstream has answered to a fetch."""

    headers: Headers
    body: bytes = b""
    landed: Landed = field(default_factory=lambda: Landed(200))
    samples: tuple[tuple[int, Sample], ...] = ()
    is_stream: bool = False
    """Only the head is here, and the events are on their way."""

    def reply(self, outcome: Outcome) -> Reply:
        """As the answer to who leads the fetch."""
        landed = self.landed
        body = self.body if landed.body is None else landed.body
        done = replace(outcome, reason=landed.refusal, status=landed.status)
        return Reply(landed.status, self.headers, body, done)


class Service:
    """Answers calls."""

    def __init__(
        self,
        exchange: Exchange,
        upstream: Upstream,
        *,
        mode: Mode = Mode.READWRITE,
        collapses: bool = True,
        isolates: bool = False,
        key_headers: KeyHeaders | None = None,
        nearest: Callable[[Known, bool], Awaitable[str]] | None = None,
    ) -> None:
        """`isolates`: each credential has a cache of its own. `key_headers` are part of each key.
        `nearest` says in a sentence which
        stored call was nearest to one; with its values only to who may see them."""
        self.flights = Flights()
        self._exchange = exchange
        self._upstream = upstream
        self._mode = mode
        self._collapses = collapses
        self._isolates = isolates
        self._key_headers = key_headers or KeyHeaders()
        self._nearest = nearest
        self._asks: dict[str, set[Ask]] = {}
        """By the ids that clients gave them."""
        self._attended: set[Ask] = set()
        """That wait for an answer, or read one."""

    def look_up(
        self,
        method: str,
        path: str,
        body: bytes,
        credential: bytes,
        routing: bytes = b"",
        *,
        streams: bool,
    ) -> Hit | None:
        """The answer to a plain request, if it can be given at once. `routing` is what
        `KeyHeaders.digest` makes of its head."""
        if self._mode is Mode.OFF or self._mode is Mode.REFRESH or self.flights.replacing:
            return None
        if not self._upstream.admits(credential, time.monotonic()):
            return None
        tenant = self._tenant(credential, routing)
        now = time.time()
        return self._exchange.lookup(method, path, body, now, tenant=tenant, streams=streams)

    def fill(self, ask: Ask) -> Coroutine[Any, Any, Answer] | None:
        """What answers in time a plain request that `look_up` did not; None if it has to be
        received as any other."""
        terms = self._introduce(ask)
        if isinstance(terms, Reason) or self.flights.replacing:
            return None
        if not self._upstream.admits(ask.credential, time.monotonic()):
            return None
        found = self._exchange.find(ask.request, time.time(), terms, ask.tenant)
        if not isinstance(found, Known) or found.call.stream:
            return None
        return self._attend(ask, found, self._gather(ask, found, terms))

    def receive(self, ask: Ask) -> Answer | Coroutine[Any, Any, Answer]:
        """The answer to a call, or what gives it in time."""
        terms = self._introduce(ask)
        if isinstance(terms, Reason):
            return self._exchange.bypass(terms)
        if self._upstream.admits(ask.credential, time.monotonic()):
            return self._decide(ask, terms)
        return self._admit(ask, terms)

    def _introduce(self, ask: Ask) -> Terms | Reason:
        """Notes who asks; on what terms, or why the request is to be passed on untouched."""
        headers = ask.request.headers
        ask.credential = admission.credential(headers)
        ask.tenant = self._tenant(ask.credential, self._key_headers.digest(headers))
        ask.shown = admission.credential_headers(headers)
        return policy.terms(self._mode, directives.parse(headers), time.time())

    def _tenant(self, credential: bytes, routing: bytes) -> bytes:
        """Whose cache it is, or which: 64 bytes at most."""
        return (credential if self._isolates else b"") + routing

    async def _admit(self, ask: Ask, terms: Terms) -> Answer:
        """Answers a call when upstream has said who it is, and that the client may ask."""
        route = (ask.request.method, ask.request.path)
        if reason := await self._upstream.admit(ask.shown, route):
            return self._let_pass(self._exchange.bypass(reason), terms)
        decided = self._decide(ask, terms)
        return await decided if isinstance(decided, Coroutine) else decided

    def _decide(self, ask: Ask, terms: Terms) -> Answer | Coroutine[Any, Any, Answer]:
        found = self._exchange.find(ask.request, time.time(), terms, ask.tenant)
        if isinstance(found, Hit):
            if self.flights.replacing:
                return self._wait_for_replacement(ask, terms)
            self._exchange.counters.hit(found.saved)
        if isinstance(found, Reason):
            return self._let_pass(self._exchange.bypass(found), terms)
        if not isinstance(found, Known):
            return found
        way = self._stream if found.call.stream else self._gather
        return self._attend(ask, found, way(ask, found, terms))

    async def _deny(self, ask: Ask, known: Known, reason: Reason) -> Reply:
        """What is not stored, for who wants nothing else."""
        outcome = Outcome(Kind.MISS, 0, known.call.total, reason, 504, key=known.key)
        text = f"sglang-cached: {_DENIALS[reason]}"
        if self._nearest and reason is Reason.OFFLINE:
            text = f"{text} {await self._nearest(known, ask.is_local)}"
        self._exchange.counters.add(outcome)
        return Reply(504, _JSON, error_body(504, "GatewayTimeout", text), outcome)

    def _let_pass(self, found: Bypass, terms: Terms) -> Bypass | Reply:
        """What is not looked up, unless upstream is not to be asked."""
        if not terms.denial:
            return found
        outcome = Outcome(Kind.MISS, reason=terms.denial, status=504)
        why = found.outcome.reason
        text = f"sglang-cached: {_DENIALS[terms.denial]} It is not looked up: {why}."
        return Reply(504, _JSON, error_body(504, "GatewayTimeout", text), outcome)

    async def _wait_for_replacement(self, ask: Ask, terms: Terms) -> Answer:
        """What is stored may be just about to be replaced by what somebody has already seen."""
        tasks = [flight.task for flight in self.flights.replacing if flight.task]
        if tasks:
            await asyncio.wait(tasks)
        decided = self._decide(ask, terms)
        return await decided if isinstance(decided, Coroutine) else decided

    # Aborts

    async def _attend(self, ask: Ask, known: Known, way: Coroutine[Any, Any, Answer]) -> Answer:
        """Goes a way to an answer, unless the client aborts its call by one of its ids."""
        ask.task = asyncio.current_task()
        with ExitStack() as exits:
            self._attended.add(ask)
            exits.callback(self._attended.discard, ask)
            for rid in known.call.rids:
                self._asks.setdefault(rid, set()).add(ask)
                exits.callback(self._unname, rid, ask)
            try:
                answer = await way
            except asyncio.CancelledError:
                if not (ask.is_aborted and ask.task):  # the client has left
                    outcome = Outcome(Kind.MISS, 0, known.call.total, Reason.CUT, key=known.key)
                    self._exchange.counters.add(outcome)
                    raise
                ask.task.uncancel()
                answer = self._aborted(known)
            finally:
                ask.task = None
            if isinstance(answer, Streamed):
                answer.exits.push(exits.pop_all())
        return answer

    def _unname(self, rid: str, ask: Ask) -> None:
        asks = self._asks[rid]
        asks.discard(ask)
        if not asks:
            del self._asks[rid]

    def targets(self, rid: str) -> list[str]:
        """What upstream is to abort where a client says this id: fetches that nobody else wants."""
        return [
            ask.rids[rid]
            for ask in self._asks.get(rid, ())
            if ask.flight and ask.flight.clients == 1 and ask.rids and rid in ask.rids
        ]

    def is_known(self, rid: str) -> bool:
        """Whether a call under way has this id."""
        return rid in self._asks

    def aborting(self, rid: str | None) -> Callable[[bool], None]:
        """An abort of the calls of this id, or of all, is on its way to upstream. What is returned
        is to be told whether upstream agrees: it ends those calls that wait for a fetch which goes
        on for others. Of a batch, one item cannot be ended so."""
        named = self._attended if rid is None else self._asks.get(rid, set())
        leads = {ask: ask.flight for ask in named}
        trial = asyncio.get_running_loop().create_future()
        for ask in leads:
            ask.trial = trial

        def ended(is_agreed: bool) -> None:
            for ask, flight in leads.items():
                if ask.trial is trial:
                    ask.trial = None
                if not is_agreed:
                    continue
                # Upstream's own answer is on its way, or was given.
                is_own = flight is not None and ask.flight is flight and flight.clients == 1
                if not (is_own or ask.is_aborted or (ask.rids and len(ask.rids) > 1)):
                    self._abort(ask)
            if not trial.done():
                trial.set_result(None)

        return ended

    def _abort(self, ask: Ask) -> None:
        if ask.task:
            ask.is_aborted = True
            ask.task.cancel()
        elif ask.stream:
            ask.is_aborted = True
            ask.stream.tell()

    def _aborted(self, known: Known) -> Reply:
        """The answer to a call that was aborted while it waited."""
        outcome = Outcome(Kind.MISS, 0, known.call.total, Reason.ABORT, key=known.key)
        self._exchange.counters.add(outcome)
        headers = _EVENTS if known.call.stream else _JSON
        return Reply(200, headers, self._exchange.aborted(known, time.time()), outcome)

    # JSON

    async def _gather(self, ask: Ask, known: Known, terms: Terms) -> Answer:
        """Brings together the samples of a call: stored ones, own ones, and others'."""
        exchange, total = self._exchange, known.call.total
        plan = exchange.plan(known, terms)
        have = plan.have
        alone, is_late = self._is_alone(terms), True
        arrived: _Arrived | None = None

        def outcome(reason: Reason | None = None) -> Outcome:
            kind = Kind.PARTIAL if have else Kind.MISS
            return Outcome(kind, have, total, reason, key=known.key)

        while needs := plan.needs:
            settling = self._settling(needs, terms)
            busy = set() if alone else self.flights.busy(needs)
            awaited = settling or (busy if len(busy) == len(needs) else None)
            found: _Arrived | Brought | None = None
            if ask.trial:  # what it waited for may have been aborted, and so may it be itself
                await asyncio.shield(ask.trial)
            elif terms.denial and not settling:
                found = await self._bring(plan, terms)
                if not found:
                    return await self._deny(ask, known, terms.denial)
            elif awaited:
                is_late = is_late and bool(settling)
                alone |= await self.flights.wait({key: needs[key] for key in awaited})
            else:
                fetch = exchange.fetch(known, plan, terms, busy)
                flight = Flight(fetch.keys)
                flight.replaces = terms.replaces
                with flight.wanted():
                    found = await self._fetch(ask, fetch, flight, alone=alone)
            if not isinstance(found, _Arrived):  # others may have stored something
                is_late = is_late and not (found and found.is_shared)
                if self._is_out_of_date(ask, known):
                    return await self._admit(ask, terms)
                before, plan = plan.have, exchange.again(plan, terms)
                have += plan.have - before
                continue
            arrived = found
            if fetch.is_whole or arrived.landed.split is None:
                reply = arrived.reply(outcome())
                exchange.counters.add(reply.outcome)
                return reply
            plan = plan.with_samples(arrived.samples)
        if arrived is None and self.flights.replacing:
            return await self._wait_for_replacement(ask, terms)
        body, saved = exchange.answer(known, plan), Saved.of(plan.samples())
        if arrived:
            done = outcome(arrived.landed.refusal)
            tokens = sum(sample.tokens for _, sample in arrived.samples)
            given = Saved(have, saved.tokens - tokens, saved.seconds)
            exchange.counters.add(done, given)
            return Reply(200, arrived.headers, body, done)
        kind = self._count_shared(saved, is_late=is_late)
        age = max(0, int(time.time() - min(sample.stored_at for sample in plan.samples())))
        return Reply(200, _JSON, body, Outcome(kind, total, total, age=age, key=known.key))

    def _settling(self, needs: Collection[bytes], terms: Terms) -> set[bytes]:
        """The pools for which it is worth a moment's wait: something is about to be stored."""
        return set() if terms.since == inf else self.flights.settling(needs)

    def _is_out_of_date(self, ask: Ask, known: Known) -> bool:
        """Whether, while a call waited, another model has come, or its credential was refused."""
        is_admitted = self._upstream.admits(ask.credential, time.monotonic())
        return not (is_admitted and self._exchange.is_present(known))

    def _is_alone(self, terms: Terms) -> bool:
        """Whether a call neither waits for others nor is waited for: what it brings is not for
        them, or what they bring not for it."""
        return not self._collapses or terms != policy.PLAIN

    def _count_shared(self, saved: Saved, *, is_late: bool) -> Kind:
        """Counts a call that others' fetches have answered. `is_late`: when it came, they only had
        to be stored, so that to its client it is a hit."""
        if is_late:
            self._exchange.counters.hit(saved)
            return Kind.HIT
        self._exchange.counters.follow(saved)
        return Kind.COLLAPSED

    # Streams

    async def _stream(self, ask: Ask, known: Known, terms: Terms) -> Answer:
        """Reads along with an equal stream that is under way, or begins one."""
        exchange = self._exchange
        alone, is_late = self._is_alone(terms), True
        while True:
            is_follower = ask.is_chunkable and not alone and not terms.denial
            flight = self.flights.find(exchange.likeness(known)) if is_follower else None
            if flight and flight.stream:
                if streamed := await self._follow(ask, known, flight, flight.stream):
                    return streamed
                alone = flight.refusal in _LASTING
                if self._is_out_of_date(ask, known):
                    return await self._admit(ask, terms)
                continue
            plan = exchange.plan(known, terms)
            if not (needs := plan.needs):
                if self.flights.replacing:
                    return await self._wait_for_replacement(ask, terms)
                return self._replay(ask, terms, is_late=is_late)
            settling = self._settling(needs, terms)
            awaited = settling or (set() if alone else self.flights.busy(needs))
            if ask.trial:
                await asyncio.shield(ask.trial)
            elif (terms.denial or not ask.is_chunkable) and not awaited:
                if not await self._bring(plan, terms):
                    if terms.denial:
                        return await self._deny(ask, known, terms.denial)
                    return exchange.bypass(Reason.HTTP_1_0)
            elif awaited:
                is_late = is_late and bool(settling)
                alone |= await self.flights.wait({key: needs[key] for key in awaited})
            else:
                begun = await self._begin(ask, known, plan, terms, alone=alone)
                if not isinstance(begun, Brought):
                    return begun
                is_late = is_late and not begun.is_shared
            if self._is_out_of_date(ask, known):
                return await self._admit(ask, terms)

    def _replay(self, ask: Ask, terms: Terms, *, is_late: bool) -> Hit:
        """A stream from the store, after others have filled it."""
        found = self._exchange.find(ask.request, time.time(), terms, ask.tenant)
        assert isinstance(found, Hit)
        kind = self._count_shared(found.saved, is_late=is_late)
        return replace(found, outcome=replace(found.outcome, kind=kind))

    async def _follow(
        self, ask: Ask, known: Known, flight: Flight, stream: Stream
    ) -> Streamed | None:
        """An answer that another's call fetches; None if it does not come to one."""
        outcome = Outcome(Kind.COLLAPSED, 0, known.call.total, key=known.key)

        def end(is_complete: bool) -> Outcome:
            if is_complete and not ask.is_aborted:
                self._exchange.counters.follow(Saved(known.call.total, stream.tokens))
            return outcome

        with ExitStack() as exits:
            exits.enter_context(flight.wanted())
            reader = stream.reader()  # from now on each event
            if not await stream.opened():
                return None
            pieces = self._show(ask, known, stream, reader)
            return Streamed((), pieces, outcome, end, exits.pop_all())

    async def _begin(
        self, ask: Ask, known: Known, plan: Plan, terms: Terms, *, alone: bool
    ) -> Answer | Brought:
        """Fetches a stream, unless others have stored something of it."""
        fetch = self._exchange.fetch(known, plan, terms)
        flight = Flight(fetch.keys, self._exchange.likeness(known))
        flight.replaces = terms.replaces
        stream = flight.stream = Stream()
        stream.stored = frozenset(cache.stored_choices(plan))
        reader = stream.reader()  # from the first event on
        kind = Kind.PARTIAL if plan.have else Kind.MISS
        outcome = Outcome(kind, plan.have, known.call.total, key=known.key)

        def end(is_complete: bool) -> Outcome:
            reason = flight.refusal if is_complete else Reason.CUT
            done = replace(outcome, reason=Reason.ABORT if ask.is_aborted else reason)
            self._exchange.counters.add(done, Saved.of(plan.samples()) if is_complete else Saved())
            return done

        with ExitStack() as exits:
            # Held for as long as the client reads.
            exits.enter_context(flight.wanted())
            arrived = await self._fetch(ask, fetch, flight, alone=alone)
            if isinstance(arrived, Brought):
                return arrived
            if not arrived.is_stream:
                reply = arrived.reply(outcome)
                self._exchange.counters.add(reply.outcome)
                return reply
            ask.flight = flight
            pieces = self._show(ask, known, stream, reader)
            opened = replace(outcome, is_open=True)
            return Streamed(arrived.headers, pieces, opened, end, exits.pop_all())

    async def _show(
        self, ask: Ask, known: Known, stream: Stream, reader: Reader
    ) -> AsyncIterator[list[bytes]]:
        """A stream in a client's own words."""
        view, ask.stream = View(known.dialect, known.call), stream
        states: dict[int, Event] = {}
        async for events in reader.read(lambda: ask.is_aborted):
            for event in events:
                if event.part is Part.STATE:
                    states[event.choice] = event
                else:  # it has not all of the choice
                    states.pop(event.choice, None)
            yield view.show(events)
        if ask.is_aborted:
            seen = {choice: view.show([event])[0] for choice, event in states.items()}
            yield self._exchange.aborted_events(known, time.time(), seen, stream.stored)

    # Fetches

    async def _bring(self, plan: Plan, terms: Terms) -> Brought | None:
        """Looks further than what is at hand; None if nothing came of it."""
        bringing = self._exchange.bring(plan, plan.needs, claims=False)
        if bringing is None:
            return None
        brought = await bringing
        return brought if self._exchange.again(plan, terms).have > plan.have else None

    async def _fetch(
        self, ask: Ask, fetch: Fetch, flight: Flight, *, alone: bool
    ) -> _Arrived | Brought:
        """Asks upstream for what is short, unless others have stored something of it. Others may
        wait for it, unless it is `alone`."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[_Arrived | Brought] = loop.create_future()
        self.flights.begin(flight, alone=alone)
        flight.task = asyncio.create_task(self._fly(flight, ask, fetch, arrived, alone=alone))
        ask.flight, ask.rids = flight, fetch.fill.rids
        try:
            return await arrived
        finally:
            ask.flight = None

    async def _fly(
        self,
        flight: Flight,
        ask: Ask,
        fetch: Fetch,
        arrived: asyncio.Future[_Arrived | Brought],
        *,
        alone: bool,
    ) -> None:
        """One fetch, from its request to the store."""
        lease: Lease | None = None
        try:
            if bringing := self._exchange.bring(fetch.plan, fetch.keys, claims=not alone):
                brought = await bringing
                lease = brought.lease
                if brought.is_shared or self._has_more(fetch):
                    _tell(arrived, brought)
                    return
            started = time.monotonic()
            landing = await self._receive_all(flight, ask, fetch, arrived)
            self.flights.answer(flight)
            flight.refusal = landing.landed.refusal
            generations = landing.landed.split.generations if landing.landed.split else ()
            seconds = time.monotonic() - started
            samples = tuple(cache.samples(generations, time.time(), seconds))
            self._exchange.counters.samples_from_upstream += len(samples)
            _tell(arrived, replace(landing, samples=samples))
            await self._keep(ask, fetch, landing.landed, samples)
        except (Unreachable, Broken) as e:
            _tell(arrived, self._failure(e))
        except Exception:  # who waits would wait for ever
            logger.exception("sglang-cached: a fetch failed")
            _tell(arrived, self._failure(Broken("an error in sglang-cached itself")))
        finally:
            if lease:
                lease.release()
            if flight.stream:
                flight.stream.end(complete=False)
            self.flights.end(flight, is_lasting=flight.refusal in _LASTING)
            arrived.cancel()

    def _has_more(self, fetch: Fetch) -> bool:
        """Whether more is at hand than when a fetch was planned."""
        return self._exchange.again(fetch.plan, fetch.terms).have > fetch.plan.have

    async def _receive_all(
        self,
        flight: Flight,
        ask: Ask,
        fetch: Fetch,
        arrived: asyncio.Future[_Arrived | Brought],
    ) -> _Arrived:
        """What upstream answers; the events of a stream are passed on as they come."""
        self._upstream.watch(ask.shown)
        request = ask.request
        body = request.body if fetch.body is None else fetch.body
        async with self._upstream.client.open(
            request.method, request.path, ask.fields, body
        ) as response:
            self._upstream.heard(ask.credential, response.status, time.monotonic())
            if flight.stream and _is_stream(response):
                flight.stream.open()
                _tell(arrived, _Arrived(response.headers, is_stream=True))
                landed = await self._relay(flight, flight.stream, fetch, response)
                return _Arrived(response.headers, landed=landed)
            raw = b"".join([piece async for piece in response.pieces()])
        if flight.stream and response.status == 200:
            return _Arrived(response.headers, raw, self._exchange.unreadable(fetch, raw))
        return _Arrived(response.headers, raw, self._exchange.land(fetch, response.status, raw))

    async def _relay(
        self, flight: Flight, stream: Stream, fetch: Fetch, response: Response
    ) -> Landed:
        """Publishes the events of a stream, and reads what they come to."""
        relay = self._exchange.relay(fetch)
        landed = None
        flight.refusal = Reason.CUT  # until it is done
        try:
            async for data in response.pieces():
                events = relay.feed(data)
                if relay.is_done and landed is None:
                    landed = self._exchange.land_stream(fetch, relay)
                    new = landed.split.generations if landed.split else ()
                    stored = sum(sample.tokens for sample in fetch.plan.samples())
                    stream.tokens = stored + sum(generation.tokens for generation in new)
                    # Who has the last word and repeats the call waits for it to be stored.
                    self.flights.answer(flight)
                    flight.refusal = landed.refusal
                stream.publish(events)
        except Broken:
            if landed is None:
                stream.publish(relay.remains())
                raise
        stream.publish(relay.remains())
        stream.end(complete=True)  # be it too early, it ended in good order
        return landed or Landed(200, refusal=Reason.CUT)

    async def _keep(
        self, ask: Ask, fetch: Fetch, landed: Landed, samples: tuple[tuple[int, Sample], ...]
    ) -> None:
        """Stores what has come, if upstream still is the model that it was."""
        if landed.refusal is Reason.OTHER_WEIGHTS:
            self._upstream.doubt(ask.shown)
        if landed.refusal or not samples:
            return
        reason = await self._upstream.confirm(fetch.stamp.turn, ask.shown)
        reason = reason or self._exchange.commit(fetch, samples)
        if reason:
            self._exchange.counters.not_stored[reason] += 1
            logger.info("sglang-cached: an answer was not stored (%s)", reason)

    def _failure(self, error: Unreachable | Broken) -> _Arrived:
        """There is no answer."""
        is_lost = isinstance(error, Unreachable)
        if is_lost:
            self._upstream.seen(False, time.monotonic())
        body = unreachable(self._upstream.url, str(error))
        refusal = Reason.UNREACHABLE if is_lost else Reason.CUT
        return _Arrived(_JSON, body, Landed(502, body, refusal=refusal))

    async def settled(self) -> None:
        """Returns when what was answered before this is stored, or will not be."""
        tasks = [f.task for f in self.flights if f.is_answered and f.task]
        if tasks:
            await asyncio.wait(tasks, timeout=SETTLE_SECONDS)


SETTLE_SECONDS = 1.0
"""How long who looks at the store waits for what is on its way there."""


def unreachable(url: str, message: str) -> bytes:
    """The body of a 502, where upstream gives no answer."""
    text = (
        f"sglang-cached cannot get an answer from {url}: {message}. "
        "Check that the server runs, and that --sglang-url names it; "
        "stored answers are served meanwhile."
    )
    return error_body(502, "BadGateway", text)


def _tell(arrived: asyncio.Future[_Arrived | Brought], landing: _Arrived | Brought) -> None:
    if not arrived.done():  # nobody may wait for it any more, or not for the end of a stream
        arrived.set_result(landing)


def _is_stream(response: Response) -> bool:
    fields = {name.lower(): value for name, value in response.headers}
    media_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    is_plain = b"content-encoding" not in fields
    return response.status == 200 and media_type == b"text/event-stream" and is_plain
