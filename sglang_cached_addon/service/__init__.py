"""A client's call from admission to answer: who asks upstream, and who waits for whom.

Acts on what `exchange` decides. A call goes on in steps: what is missing is followed, waited for
or fetched, and after each wait everything is looked at anew, so that one answer is of one model,
and of what there is by then. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

from sglang_cached_addon.core import admission, directives, planning, policy
from sglang_cached_addon.core.admission import Asker
from sglang_cached_addon.core.cache import Brought
from sglang_cached_addon.core.call import Part
from sglang_cached_addon.core.outcome import Kind, Outcome, Saved
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Mode, Reason, Terms
from sglang_cached_addon.core.routing import KeyHeaders
from sglang_cached_addon.service.aborting import Aborts
from sglang_cached_addon.service.asking import Answer, Arrived, Ask, Reply, Streamed
from sglang_cached_addon.service.exchange import Bypass, Exchange, Fetch, Hit, Known, error_body
from sglang_cached_addon.service.fetching import JSON, MERGE_SECONDS, Fetcher
from sglang_cached_addon.service.flights import Flight, Flights
from sglang_cached_addon.service.relay import Event, View
from sglang_cached_addon.service.stream import Reader, Stream
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire import http1

_P = ParamSpec("_P")
_T = TypeVar("_T")

ATTEMPTS = 3
"""How often a call begins anew because the model has changed; then upstream is left alone with
it."""

STRIKES, WHOLE_SECONDS = 2, 60.0
"""How often in a row upstream may misunderstand what it is asked for as a part of an answer, and
how long it is not asked for one after that."""

_EVENTS = ((b"Content-Type", http1.EVENT_STREAM.encode()),)

_DENIALS = {
    Reason.ONLY_IF_CACHED: "not stored, and the request says only-if-cached.",
    Reason.OFFLINE: "not stored, and sglang-cached runs with --mode offline.",
}

# With these, upstream may have misunderstood what it was asked for, and the client's own call may
# be answered all the same.
_MISUNDERSTOOD = (200, 400, 422)


@dataclass(slots=True)
class _Way:
    """What a call has come to, on its way to an answer."""

    known: Known
    terms: Terms
    plan: Plan
    is_alone: bool
    """It neither waits for others nor is waited for."""
    has_waited: bool = False
    """For what others were fetching."""
    arrived: Arrived | None = None
    """What it has last fetched itself."""
    refusal: Reason | None = None
    """Why something of what it has fetched is not stored."""
    flights: list[Flight] = field(default_factory=list)
    """Its own."""
    own: set[int] = field(default_factory=set)
    """The identities of the samples that these have brought."""
    is_merged: bool = False
    """What it is made of has been found to be of one model, or was waited for long enough."""

    def outcome(self, reason: Reason | None = None) -> Outcome:
        """Of a call that has fetched something itself."""
        total, have = self.known.call.total, self.have
        kind = Kind.PARTIAL if have else Kind.MISS
        return Outcome(kind, have, total, reason, key=self.known.key)

    @property
    def dialect(self) -> str:
        """The name of its dialect."""
        return self.known.dialect.name

    @property
    def have(self) -> int:
        """Samples that it has not fetched itself."""
        return sum(id(sample) not in self.own for sample in self.plan.samples())

    def take(self, arrived: Arrived, flight: Flight) -> None:
        """Adds what it has fetched."""
        self.arrived = arrived
        self.refusal = self.refusal or arrived.landed.refusal
        self.flights.append(flight)
        self.own.update(id(sample) for _, sample in arrived.samples)
        self.plan = self.plan.with_samples(arrived.samples)


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
        credential_fields: Collection[bytes] = admission.CREDENTIAL_FIELDS,
        nearest: Callable[[Known, bool], Awaitable[str]] | None = None,
    ) -> None:
        """`isolates`: each credential has a cache of its own. `key_headers` are part of each key,
        `credential_fields` the lower-case names of the header fields that a credential is made of.
        `nearest` says in a sentence which stored call was nearest to one; with its values only to
        who may see them."""
        self.flights = Flights()
        self.aborts = Aborts()
        self._exchange = exchange
        self._upstream = upstream
        self._fetcher = Fetcher(exchange, upstream, self.flights)
        self._mode = mode
        self._collapses = collapses
        self._isolates = isolates
        self._key_headers = key_headers or KeyHeaders()
        self._credential_fields = credential_fields
        self._nearest = nearest
        self._strikes: dict[str, list[float]] = {}
        """When upstream did not understand what it was asked for as a part, by dialect."""

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
        if self._mode is Mode.OFF or self._mode is Mode.REFRESH:
            return None
        tenant = self._tenant(credential, routing)
        hit = self._exchange.lookup(method, path, body, time.time(), tenant=tenant, streams=streams)
        asker = Asker(credential, method, path, hit.model, routing) if hit else None
        if hit is None or asker is None or not self._upstream.admits(asker, time.monotonic()):
            return None
        self._exchange.counters.hit(hit.saved)
        return hit

    def fill(self, ask: Ask) -> Coroutine[Any, Any, Answer] | None:
        """What answers in time a plain request that `look_up` did not; None if it has to be
        received as any other."""
        terms = self._introduce(ask)
        if isinstance(terms, Reason):
            return None
        found = self._exchange.find(ask.request, time.time(), terms, ask.tenant)
        if not isinstance(found, Known) or found.call.stream:
            return None
        ask.model = found.model
        if not self._upstream.admits(ask.asker, time.monotonic()):
            return None
        return self._attend(ask, found, terms)

    def receive(self, ask: Ask) -> Answer | Coroutine[Any, Any, Answer]:
        """The answer to a call, or what gives it in time."""
        terms = self._introduce(ask)
        if isinstance(terms, Reason):
            return self._exchange.bypass(terms)
        found = self._exchange.find(ask.request, time.time(), terms, ask.tenant)
        if isinstance(found, Hit | Known):
            ask.model = found.model
            if not self._upstream.admits(ask.asker, time.monotonic()):
                return self._admit(ask, terms)
        decided = self._take(found, terms)
        return self._attend(ask, decided, terms) if isinstance(decided, Known) else decided

    def _introduce(self, ask: Ask) -> Terms | Reason:
        """Notes who asks; on what terms, or why the request is to be passed on untouched."""
        headers = ask.request.headers
        ask.credential = admission.credential(headers, self._credential_fields)
        ask.routing = self._key_headers.digest(headers)
        ask.tenant = self._tenant(ask.credential, ask.routing)
        ask.credential_headers = admission.credential_headers(headers, self._credential_fields)
        if ask.routing:
            fields = self._key_headers.fields(headers)
            ask.routing_headers = tuple(
                field for field in fields if field not in ask.credential_headers
            )
        return policy.terms(self._mode, directives.parse(headers), time.time())

    def _tenant(self, credential: bytes, routing: bytes) -> bytes:
        """Whose cache it is, or which: 64 bytes at most."""
        return (credential if self._isolates else b"") + routing

    async def _admit(self, ask: Ask, terms: Terms) -> Answer:
        """Answers a call when upstream has said who it is, and that the client may ask."""
        decided = await self._look_again(ask, terms)
        return await self._attend(ask, decided, terms) if isinstance(decided, Known) else decided

    async def _look_again(self, ask: Ask, terms: Terms) -> Answer | Known:
        """What there is for a call, when upstream has said who it is, and that the client may
        ask."""
        if reason := await self._upstream.admit(
            ask.asker, ask.credential_headers, ask.routing_headers
        ):
            return self._let_pass(self._exchange.bypass(reason), terms)
        return self._take(self._exchange.find(ask.request, time.time(), terms, ask.tenant), terms)

    def _take(self, found: Hit | Known | Reason, terms: Terms) -> Answer | Known:
        """Counts what was found, where it is an answer, or none is to be had here."""
        if isinstance(found, Hit):
            self._exchange.counters.hit(found.saved)
        if isinstance(found, Reason):
            return self._let_pass(self._exchange.bypass(found), terms)
        return found

    async def _deny(self, ask: Ask, known: Known, reason: Reason) -> Reply:
        """What is not stored, for who wants nothing else."""
        outcome = Outcome(Kind.MISS, 0, known.call.total, reason, 504, key=known.key)
        text = f"sglang-cached: {_DENIALS[reason]}"
        if self._nearest and reason is Reason.OFFLINE:
            text = f"{text} {await self._nearest(known, ask.is_local)}"
        self._exchange.counters.add(outcome)
        return Reply(504, JSON, error_body(504, "GatewayTimeout", text), outcome)

    def _let_pass(self, found: Bypass, terms: Terms) -> Bypass | Reply:
        """What is not looked up, unless upstream is not to be asked."""
        if not terms.denial:
            return found
        outcome = Outcome(Kind.MISS, reason=terms.denial, status=504)
        why = found.outcome.reason
        text = f"sglang-cached: {_DENIALS[terms.denial]} It is not looked up: {why}."
        return Reply(504, JSON, error_body(504, "GatewayTimeout", text), outcome)

    # Under way

    async def _attend(self, ask: Ask, known: Known, terms: Terms) -> Answer:
        """Goes a call's way to an answer, unless the client aborts it by one of its ids."""
        ask.task = asyncio.current_task()
        with ExitStack() as exits:
            exits.enter_context(self.aborts.attend(ask, known.call.rids))
            try:
                answer = await self._pursue(ask, known, terms)
            except asyncio.CancelledError:
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
        return answer

    def _aborted(self, ask: Ask, known: Known) -> Reply:
        """The answer to a call that was aborted while it waited: what was generated till then, as
        far as that is known."""
        outcome = Outcome(Kind.MISS, 0, known.call.total, Reason.ABORT, key=known.key)
        self._exchange.counters.add(outcome)
        samples = ask.partial.samples if ask.partial else ()
        body = self._exchange.aborted(known, time.time(), samples)
        return Reply(200, _EVENTS if known.call.stream else JSON, body, outcome)

    async def _pursue(self, ask: Ask, known: Known, terms: Terms) -> Answer:
        """Begins anew whenever another model has come, or the credential was refused."""
        for _ in range(ATTEMPTS):
            plan = self._plan(known, terms)
            way = _Way(known, terms, plan, not self._collapses or terms != policy.PLAIN)
            while True:
                if (answer := await self._step(ask, way)) is not None:
                    return answer
                if self._is_out_of_date(ask, known):
                    break
                way.plan = self._plan(known, terms, way.plan)
            found = await self._look_again(ask, terms)
            if not isinstance(found, Known):
                return found
            known = found
        return self._let_pass(self._exchange.bypass(Reason.MODEL_CHANGED), terms)

    def _is_out_of_date(self, ask: Ask, known: Known) -> bool:
        """Whether, while a call waited, another model has come, or its credential was refused."""
        is_admitted = self._upstream.admits(ask.asker, time.monotonic())
        return not (is_admitted and self._exchange.is_present(known))

    def _plan(self, known: Known, terms: Terms, before: Plan | None = None) -> Plan:
        """What is at hand for a call, or by now of what was short before: what is stored, and what
        others have just brought."""
        stamp = self._exchange.stamp(known)

        def brought(key: bytes, is_first: bool) -> Any:
            return self.flights.brought(key, stamp, is_first=is_first)

        more = brought if self.flights.any_landed else None
        if before:
            return self._exchange.again(before, terms, more)
        return self._exchange.plan(known, terms, more)

    async def _step(self, ask: Ask, way: _Way) -> Answer | None:
        """Whatever brings a call further; None if all is to be looked at again."""
        call, terms = way.known.call, way.terms
        needs = way.plan.needs
        if not needs:
            return await self._complete(way)
        if flight := self._find(ask, way):
            return await self._follow(ask, way, flight)
        if ask.abort:  # what it waited for may have been aborted, and so may it be itself
            await asyncio.shield(ask.abort)
            return None
        busy = set() if way.is_alone else self.flights.busy(needs)
        if terms.denial:
            return await self._look_further(ask, way)
        if busy and (call.stream or len(busy) == len(needs)):
            return await self._wait(ask, way, {key: needs[key] for key in busy})
        if call.stream and not ask.is_chunkable:
            return self._exchange.bypass(Reason.HTTP_1_0)
        fetch = self._exchange.fetch(way.known, way.plan, terms, busy)
        if not fetch.is_whole and self._is_misunderstood(way.dialect):
            return self._exchange.bypass(Reason.UNREADABLE)
        return await (self._begin if call.stream else self._gather)(ask, way, fetch)

    # What is all there

    async def _complete(self, way: _Way) -> Answer | None:
        """Puts an answer together, if all of it is known to be of one model."""
        if not way.is_merged and (tasks := self._others(way)):
            way.is_merged = True
            await asyncio.wait(tasks, timeout=MERGE_SECONDS)
            return None
        known, plan = way.known, way.plan
        saved = Saved.of(plan.samples())
        if way.arrived:
            outcome = way.outcome(way.refusal)
            new = [sample for sample in plan.samples() if id(sample) in way.own]
            tokens = saved.tokens - sum(sample.tokens for sample in new)
            body = await self._beside(known, self._exchange.answer, known, plan)
            self._exchange.counters.add(outcome, Saved(way.have, tokens, saved.seconds))
            return Reply(200, way.arrived.headers, body, outcome)
        hit = await self._beside(known, self._exchange.hit, known, plan, time.time())
        if not way.has_waited:
            self._exchange.counters.hit(saved)
            return hit
        self._exchange.counters.follow(saved)
        return replace(hit, outcome=replace(hit.outcome, kind=Kind.COLLAPSED))

    async def _beside(
        self, known: Known, make: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """What this makes of a call; of a large one, beside the event loop."""
        if known.call.total < policy.LARGE_SAMPLES:
            return make(*args, **kwargs)
        return await asyncio.to_thread(make, *args, **kwargs)

    def _others(self, way: _Way) -> set[asyncio.Task[None]]:
        """The fetches whose samples are together with others in an answer, and are not yet
        confirmed to be of the model that the call is for."""
        found = [*self.flights.landed(set(way.known.keys)), *way.flights]
        flights = {flight for flight in found if flight.task and not flight.task.done()}
        if len(flights) == 1:
            (flight,) = flights
            ids = {id(sample) for samples in flight.brings.values() for sample in samples}
            if all(id(sample) in ids for sample in way.plan.samples()):
                return set()
        return {flight.task for flight in flights if flight.task}

    async def _look_further(self, ask: Ask, way: _Way) -> Answer | None:
        """Looks further than what is at hand, for one who wants nothing fetched."""
        plan, terms = way.plan, way.terms
        if bringing := self._exchange.bring(plan, plan.needs, claims=False):
            brought = await bringing
            way.has_waited |= brought.is_shared
            if self._plan(way.known, terms, plan).have > plan.have:
                return None
        assert terms.denial
        return await self._deny(ask, way.known, terms.denial)

    # What others fetch

    async def _wait(self, ask: Ask, way: _Way, needs: Mapping[bytes, int]) -> Answer | None:
        flight = await self.flights.wait(needs)
        way.has_waited = True
        return self._after(ask, way, flight)

    def _after(self, ask: Ask, way: _Way, flight: Flight) -> Reply | Bypass | None:
        """The answer to one who waited for what has failed, if it is one to all who did. Else they
        go on alone, all at once: what failed for one may succeed for another, and what can never
        be stored would have them go one after the other."""
        if flight.brings or not flight.refusal:
            return None
        if flight.refusal is Reason.TOO_LARGE:
            return self._exchange.bypass(Reason.TOO_LARGE)
        if flight.refusal is Reason.ABORT and flight.identity == self._likeness(way.known):
            ask.partial = flight.answer
        if not (flight.answer and self._concerns(ask, way, flight)):
            way.is_alone = True
            return None
        landed = flight.answer.landed
        total = way.known.call.total
        reply: Reply = flight.answer.reply(
            Outcome(Kind.COLLAPSED, 0, total, landed.refusal, landed.status, key=way.known.key)
        )
        self._exchange.counters.add(reply.outcome)
        return reply

    def _concerns(self, ask: Ask, way: _Way, flight: Flight) -> bool:
        """Whether a failure would have been a call's own, too. What upstream says to one
        credential, or to another call, is nobody else's."""
        if flight.refusal is Reason.UNREACHABLE:
            return True
        is_equal = flight.identity == self._likeness(way.known)
        if not is_equal or flight.credential != ask.credential:
            return False
        status = flight.answer.landed.status
        return flight.refusal is Reason.CUT or status == 429 or status >= 500

    def _likeness(self, known: Known) -> Any:
        return self._exchange.likeness(known)

    def _find(self, ask: Ask, way: _Way) -> Flight | None:
        """A stream that can be read along."""
        if not (way.known.call.stream and ask.is_chunkable) or way.is_alone or way.terms.denial:
            return None
        return self.flights.find(self._likeness(way.known))

    async def _follow(self, ask: Ask, way: _Way, flight: Flight) -> Answer | None:
        """An answer that another's call fetches; None if it does not come to one."""
        known, stream = way.known, flight.stream
        assert stream
        outcome = Outcome(Kind.COLLAPSED, 0, known.call.total, key=known.key)
        way.has_waited = True
        with ExitStack() as exits:
            exits.enter_context(self.flights.wanted(flight))
            reader = stream.reader()  # from now on each event
            exits.callback(reader.close)

            def end(is_complete: bool) -> Outcome:
                if (is_complete or reader.has_all) and not ask.is_aborted:
                    saved = Saved(known.call.total, stream.tokens)
                    self._exchange.counters.follow(saved)
                    return outcome
                return replace(outcome, reason=Reason.ABORT if ask.is_aborted else Reason.CUT)

            if await stream.opened():
                pieces = self._show(ask, known, stream, reader)
                return Streamed((), pieces, outcome, end, exits.pop_all())
        return self._after(ask, way, flight)

    # What it fetches itself

    def _flight(self, ask: Ask, way: _Way, fetch: Fetch, stream: Stream | None = None) -> Flight:
        return Flight(
            fetch.keys,
            self._likeness(way.known),
            stamp=fetch.stamp,
            credential=ask.credential,
            stream=stream,
            is_addition=not way.terms.replaces,
        )

    async def _gather(self, ask: Ask, way: _Way, fetch: Fetch) -> Answer | None:
        """Fetches what nobody else does."""
        flight = self._flight(ask, way, fetch)
        with self.flights.wanted(flight):
            arrived = await self._fetcher.fetch(ask, fetch, flight, alone=way.is_alone)
        if isinstance(arrived, Brought):
            way.has_waited |= arrived.is_shared
            return None
        if answer := self._as_answer(way, fetch, arrived):
            return answer
        way.take(arrived, flight)
        return None

    def _as_answer(self, way: _Way, fetch: Fetch, arrived: Arrived) -> Answer | None:
        """What has come, where it is not a part of the answer but all of it, or none."""
        landed = arrived.landed
        if landed.refusal is Reason.TOO_LARGE:
            return self._exchange.bypass(Reason.TOO_LARGE)
        if landed.split is None and not fetch.is_whole and landed.status in _MISUNDERSTOOD:
            # It may ignore `n`, or not take a list: what it makes of the client's own call is the
            # client's to know.
            self._strikes.setdefault(way.dialect, []).append(time.monotonic())
            return self._exchange.bypass(Reason.UNREADABLE)
        if fetch.asks_more and landed.status in (400, 422):
            # An older vLLM refuses fields that it does not know.
            return self._exchange.bypass(Reason.UNREADABLE)
        if not fetch.is_whole and landed.refusal in (Reason.OTHER_WEIGHTS, Reason.MIXED_WEIGHTS):
            return self._exchange.bypass(landed.refusal)
        if not fetch.is_whole and landed.split:
            self._strikes.pop(way.dialect, None)
            return None
        reply = arrived.reply(replace(way.outcome(landed.refusal), status=landed.status))
        self._exchange.counters.add(reply.outcome)
        return reply

    def _is_misunderstood(self, dialect: str) -> bool:
        """Whether it is of no use to ask upstream for a part of an answer."""
        strikes = self._strikes.get(dialect, [])
        if len(strikes) >= STRIKES and time.monotonic() > strikes[-1] + WHOLE_SECONDS:
            del self._strikes[dialect]
            return False
        return len(strikes) >= STRIKES

    async def _begin(self, ask: Ask, way: _Way, fetch: Fetch) -> Answer | None:
        """Fetches a stream, unless others have stored something of it."""
        known, plan, stream = way.known, way.plan, Stream()
        stream.stored = frozenset(planning.stored_choices(plan))
        flight = self._flight(ask, way, fetch, stream)
        outcome = way.outcome()
        with ExitStack() as exits:
            # Held for as long as the client reads.
            exits.enter_context(self.flights.wanted(flight))
            reader = stream.reader()  # from the first event on
            exits.callback(reader.close)

            def end(is_complete: bool) -> Outcome:
                is_complete = is_complete or reader.has_all
                reason = flight.refusal if is_complete else Reason.CUT
                done = replace(outcome, reason=Reason.ABORT if ask.is_aborted else reason)
                saved = Saved.of(plan.samples()) if is_complete else Saved()
                self._exchange.counters.add(done, saved)
                return done

            arrived = await self._fetcher.fetch(ask, fetch, flight, alone=way.is_alone)
            if isinstance(arrived, Brought):
                way.has_waited |= arrived.is_shared
                return None
            if arrived.is_stream:
                ask.flight = flight
                pieces = self._show(ask, known, stream, reader)
                opened = replace(outcome, is_open=True)
                return Streamed(arrived.headers, pieces, opened, end, exits.pop_all())
        return self._as_answer(way, fetch, arrived)

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
