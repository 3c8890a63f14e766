"""A request's way through the cache, from body bytes to answer bytes.

`find` reads a request and says what to do: answer (`Hit`), pass on untouched (`Bypass`), or
gather the samples (`Known`, whose `plan` tells what is short). `fetch` makes the
one call to upstream for what is short, `land` reads its answer, `commit` stores it, and `answer`
writes the client's. Free of mitmproxy, clocks and I/O: times and ids are arguments. One object
serves one upstream, on one thread.
"""

from __future__ import annotations

from collections.abc import (
    Awaitable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from io import BytesIO
from math import inf
from typing import Any

import orjson

from sglang_cached_addon.core import epochs, identity, keys, planning, policy
from sglang_cached_addon.core.cache import Brought, Sample, Store
from sglang_cached_addon.core.call import Call, Fill, Mint, Split, without_skipped
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.memo import Memo
from sglang_cached_addon.core.outcome import Counters, Kind, Outcome, Saved
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import PLAIN, Reason, Refused, Terms
from sglang_cached_addon.dialects import Registry
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.service import landing, slices
from sglang_cached_addon.service.relay import Relay
from sglang_cached_addon.wire import http1, sse


@dataclass(frozen=True, slots=True)
class Hit:
    """Every sample was stored: the answer's body."""

    body: bytes
    """Of a stream, in chunks of HTTP: one event each."""
    outcome: Outcome
    saved: Saved
    oldest: float
    """When the oldest of its samples was stored: Unix seconds."""
    model: str
    """What the call names as its model; empty where it names none."""
    is_stream: bool = False
    longest: int = 0
    """Completion tokens of the longest of its samples."""

    def seconds(self, rate: float) -> float:
        """How long a stream takes at a pace in tokens a second; 0: no time at all."""
        return self.longest / rate if rate else 0.0


@dataclass(frozen=True, slots=True)
class Bypass:
    """Not looked up: to be passed on as it came."""

    outcome: Outcome


@dataclass(slots=True, eq=False)
class Known:
    """A body that was read, and the answer that it had."""

    dialect: Dialect
    call: Call
    keys: tuple[bytes, ...]
    model_version: int = 0
    """Of the model whose keys these are: see `Exchange.enter`."""
    raw: bytes = b""
    """The name of the body, where the first sample of its pool answers it."""
    hit: Hit | None = None
    generation: int = -1
    """Of the store, when `hit` was put together."""
    has_model: bool = True
    """It is known which model answers."""

    @property
    def key(self) -> bytes:
        """Of its pool, where it has just one, and it is known whose it is."""
        return self.keys[0] if len(self.keys) == 1 and self.has_model else b""

    @property
    def model(self) -> str:
        """What the call names as its model; empty where it names none."""
        return _model(self.call.body)


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Samples are short: `body` goes upstream (None: the client's own bytes)."""

    known: Known
    plan: Plan
    fill: Fill
    body: bytes | None
    terms: Terms
    stamp: Stamp

    @property
    def asks_more(self) -> bool:
        """Whether it asks for what its client has not, of a server that may refuse that."""
        is_sglang = self.fill.server.engine == identity.SGLANG
        return not is_sglang and bool(self.fill.added or self.fill.counts)

    @property
    def is_whole(self) -> bool:
        """Whether upstream is asked for all that the client asked for."""
        return self.fill.total == self.plan.call.total and not any(self.fill.skip)

    @property
    def keys(self) -> frozenset[bytes]:
        """The pools that it fills."""
        return frozenset(self.plan.keys[item] for item in self.fill.order)


@dataclass(frozen=True, slots=True)
class Stamp:
    """The state of things when a fetch was planned; in another, its answer is not stored."""

    clears: int
    model_version: int
    """Of the model: see `Exchange.enter`."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What upstream answered to a fetch."""

    status: int
    body: bytes = b""
    """What the client gets; empty where it is but a part of that, or was streamed."""
    split: Split | None = None
    """None where there are no samples in it."""
    refusal: Reason | None = None
    """Why it is not to be stored."""


MEMO_BYTES = 16 << 20
"""Of bodies read before, with what was made of them: an estimate."""

MEMO_OVERHEAD = 2048
"""Bytes of an entry beside what grows with the body."""

TENANTS = 1024
"""Credentials whose digesters are kept at hand, where caches are apart."""


class Exchange:
    """The cache in front of one upstream."""

    def __init__(self, dialects: Registry, store: Store, mint: Mint, fingerprint: str = "") -> None:
        self.dialects = dialects
        self.counters = Counters()
        self._store = store
        self._mint = mint
        self._fingerprint = fingerprint
        self._epochs = Epochs()
        self._server = identity.UNKNOWN
        self._model_version = 0
        self._digesters: dict[tuple[str, bytes], keys.Digester] = {}
        self._memo: Memo[tuple[str, bytes, bytes], Known | Reason] = Memo(MEMO_BYTES)

    # The model

    def enter(self, fingerprint: str, epochs: Epochs, server: Server, model_version: int) -> None:
        """From now on this model answers, on this server; another `model_version` says that it may
        have been another one in between."""
        self._fingerprint, self._epochs, self._server = fingerprint, epochs, server
        self._model_version = model_version
        self._digesters.clear()
        self._memo.clear()

    def _digester(self, dialect: str, tenant: bytes) -> keys.Digester:
        found = self._digesters.get((dialect, tenant))
        if found is None:
            if len(self._digesters) >= TENANTS:
                self._digesters.clear()
            adapters = self._epochs.adapters_token
            found = keys.Digester(self._fingerprint, dialect, tenant, adapters)
            self._digesters[dialect, tenant] = found
        return found

    def _keys(self, dialect: str, tenant: bytes, items: Iterable[bytes]) -> list[bytes]:
        """The names of the items' pools."""
        digester = self._digester(dialect, tenant)
        if not self._epochs.adapters_token:
            return [digester.key(item) for item in items]
        return [
            digester.key(item, self._epochs.adapter_epochs(epochs.adapters(item))) for item in items
        ]

    # Reading

    def find(
        self,
        method: str,
        path: str,
        body: bytes,
        now: float,
        terms: Terms = PLAIN,
        tenant: bytes = b"",
    ) -> Hit | Known | Reason:
        """What there is for a call whose route has a dialect, or why it is not looked up. Nothing
        is counted yet. `tenant` is part of its keys, beside its body."""
        dialect = self.dialects[method, path]
        asked = (dialect.name, tenant, body)
        known = self._memo.get(asked)
        if known is None:
            raw = self._digester(dialect.name, tenant).raw(body)
            key = self._store.find(raw)
            if key and (pool := self._store.get(key)) and terms.since == -inf:
                return self._plain(key, pool[0], now, _model(orjson.loads(body)))
            known = self._parse(dialect, tenant, body, raw)
            self._memo.put(asked, known, MEMO_OVERHEAD + 4 * len(body))
        return known if isinstance(known, Reason) else self._hit(known, now, terms) or known

    def bypass(self, reason: Reason) -> Bypass:
        """Counts a request that is not looked up."""
        outcome = Outcome(Kind.BYPASS, reason=reason)
        self.counters.add(outcome)
        return Bypass(outcome)

    def _plain(self, key: bytes, sample: Sample, now: float, model: str) -> Hit:
        """A sample as the whole answer, which it is to a plain call for one."""
        age = max(0, int(now - sample.stored_at))
        saved = Saved(1, sample.tokens, sample.seconds)
        outcome = Outcome(Kind.HIT, 1, 1, age=age, key=key)
        return Hit(sample.answer, outcome, saved, sample.stored_at, model)

    def _parse(self, dialect: Dialect, tenant: bytes, body: bytes, raw: bytes) -> Known | Reason:
        if not keys.is_quick(body):
            return Reason.TOO_LARGE
        try:
            call = dialect.read(keys.parse(body))
        except Refused as refused:
            return refused.reason
        if call.total > policy.MAX_SAMPLES:
            return Reason.TOO_LARGE
        if self._draws_copies(call):
            return Reason.INSEPARABLE
        if call.stream and self._server.streams_usage:
            call = replace(call, stream=replace(call.stream, usage=True))
        is_plain = call.total == 1 and not (call.batched or call.rids or call.stream)
        pools = tuple(self._keys(dialect.name, tenant, call.items))
        name = raw if is_plain else b""
        return Known(
            dialect, call, pools, self._model_version, name, has_model=bool(self._fingerprint)
        )

    def _draws_copies(self, call: Call) -> bool:
        """Whether a prompt that stands twice in a list gets the same sample twice, which a call
        for two of them does not: where a seed is all that samples differ by."""
        is_seeded = call.is_seeded and self._server.engine != identity.SGLANG
        return is_seeded and len(set(call.items)) < len(call.items)

    def _hit(self, known: Known, now: float, terms: Terms) -> Hit | None:
        if known.call.total >= policy.LARGE_SAMPLES:
            return None  # who answers puts it together where nobody waits for that
        hit = known.hit
        if terms.since > -inf:
            plan = self.plan(known, terms)
            return None if plan.needs else self.hit(known, plan, now)
        if hit and self._store.is_expired(hit.oldest):
            hit = None
        if hit is None or known.generation != self._store.generation:
            plan = self.plan(known)
            if plan.have < known.call.total:
                return None
            hit = self.hit(known, plan, now)
            # Within a generation pools only grow at their end, so this stays the answer.
            if hit.body is plan.stored[0][0].answer or self._memo.charge(len(hit.body)):
                known.hit, known.generation = hit, self._store.generation
            return hit
        self._store.touch(known.keys)
        if (age := max(0, int(now - hit.oldest))) != hit.outcome.age:
            known.hit = hit = replace(hit, outcome=replace(hit.outcome, age=age))
        return hit

    def hit(self, known: Known, plan: Plan, now: float) -> Hit:
        """The answer to a call whose samples are all there."""
        samples = list(plan.samples())
        oldest = min(sample.stored_at for sample in samples)
        total = known.call.total
        age = max(0, int(now - oldest))
        outcome = Outcome(Kind.HIT, total, total, age=age, key=known.key)
        longest = max(sample.tokens for sample in samples)
        is_stream = known.call.stream is not None
        body = http1.chunked(_events(known, plan.stored)) if is_stream else self.answer(known, plan)
        return Hit(body, outcome, Saved.of(samples), oldest, known.model, is_stream, longest)

    def is_present(self, known: Known) -> bool:
        """Whether its keys are those of the model that answers now."""
        return known.model_version == self._model_version

    # Fetching

    def plan(self, known: Known, terms: Terms = PLAIN, more: planning.More | None = None) -> Plan:
        """What is at hand for a call, and what is short."""
        return planning.plan(known.call, known.keys, self._store, terms.since, more)

    def again(self, plan: Plan, terms: Terms = PLAIN, more: planning.More | None = None) -> Plan:
        """A plan, with what is at hand by now of what was short."""
        needs = plan.needs
        return plan.again(needs, self._store, terms.since, more) if needs else plan

    def stamp(self, known: Known) -> Stamp:
        """The state of things as a call sees it."""
        return Stamp(self._store.clears, known.model_version)

    def bring(
        self, plan: Plan, keys: Collection[bytes], *, claims: bool
    ) -> Awaitable[Brought] | None:
        """As `Store.bring`, for what is short of these pools."""
        needs = {key: need for key, need in plan.needs.items() if key in keys}
        return self._store.bring(needs, claims=claims)

    def fetch(
        self, known: Known, plan: Plan, terms: Terms = PLAIN, busy: Collection[bytes] = ()
    ) -> Fetch:
        """The call that brings what is short, but for `busy` pools, which others fill."""
        pairs = zip(plan.keys, plan.shortfalls, strict=True)
        shortfalls = tuple(0 if key in busy else short for key, short in pairs)
        fill = known.dialect.trim(known.call, shortfalls, self._mint, self._server)
        body = None if fill.body == known.call.body else orjson.dumps(fill.body)
        return Fetch(known, plan, fill, body, terms, self.stamp(known))

    def land(
        self, fetch: Fetch, status: int, body: BytesIO, pause: slices.Pause = lambda: None
    ) -> Landed:
        """Reads what upstream answered, and empties it where it is not shown as it is. What is
        `slices.LARGE` belongs into a thread, and pauses now and then for others."""
        if reason := policy.store_refusal(status):
            return Landed(status, body.getvalue(), refusal=reason)
        call, fill = fetch.known.call, fetch.fill
        found: Split | Reason
        if call.stream:
            found, shown = Reason.UNREADABLE, body.getvalue()
        else:
            dialect, is_whole = fetch.known.dialect, fetch.is_whole
            found, shown = landing.take(dialect, call, fill, body, is_whole=is_whole, pause=pause)
        if isinstance(found, Split) and not fetch.is_whole:
            shown = b""  # it is put together with others
        shown = landing.with_client_rids(shown, fill.rids, pause)
        if isinstance(found, Reason):
            return Landed(200, shown, refusal=found)
        return Landed(200, shown, without_skipped(found, fill), self._refusal(fetch, found))

    def land_stream(self, fetch: Fetch, relay: Relay) -> Landed:
        """Reads a stream that is done."""
        try:
            split = without_skipped(relay.split(), fetch.fill)
        except Refused as refused:
            return Landed(200, refusal=refused.reason)
        return Landed(200, b"", split, self._refusal(fetch, split))

    def _refusal(self, fetch: Fetch, split: Split) -> Reason | None:
        """Why what has come is not stored, as far as it says itself."""
        if split.refusal:
            return split.refusal
        if len(split.versions) > 1:
            return Reason.MIXED_WEIGHTS
        weights = self._server.weight_version
        if weights is not None and split.versions - {weights}:
            return Reason.OTHER_WEIGHTS
        if fetch.terms.refusal:
            return fetch.terms.refusal
        size = sum(len(g.answer) + len(g.deltas) for g in split.generations)
        return None if self._store.has_room(size) else Reason.DISK

    def commit(self, fetch: Fetch, samples: Iterable[tuple[int, Sample]]) -> Reason | None:
        """Stores what a fetch has brought, or says why not, or not all of it."""
        reasons = (reason for _, reason in self.commits(fetch, samples))
        return next(filter(None, reasons), None)

    def commits(
        self, fetch: Fetch, samples: Iterable[tuple[int, Sample]]
    ) -> Iterator[tuple[planning.Piece, Reason | None]]:
        """As `commit`, a piece at a time, in between which others may have their turn. With a
        reason it ends."""
        name, raw = fetch.known.dialect.name, fetch.known.raw
        if fetch.known.call.is_seeded and self._server.engine != identity.SGLANG:
            samples = self._unknown(fetch, samples)
        for one in planning.pieces(fetch.plan, samples, fetch.terms.since):
            if fetch.stamp.clears != self._store.clears:
                # Who clears the cache wants nothing back that was on its way then.
                yield one, Reason.CLEARED
                return
            if fetch.stamp.model_version != self._model_version:
                yield one, Reason.MODEL_CHANGED
                return
            is_kept = self._store.append(
                one.key, name, one.content, one.samples, raw, since=one.since
            )
            yield one, None if is_kept else Reason.DISK
            if not is_kept:
                return

    def room(self) -> Awaitable[None] | None:
        """As `Store.room`."""
        return self._store.room()

    def _unknown(
        self, fetch: Fetch, samples: Iterable[tuple[int, Sample]]
    ) -> list[tuple[int, Sample]]:
        """Those whose places in their pools are free: with a seed, the sample of each place is a
        certain one, and others may have stored it meanwhile."""
        places = [len(pool) for pool in fetch.plan.stored]
        is_replaced = fetch.terms.replaces
        found = []
        for item, sample in samples:
            if is_replaced or places[item] >= len(self._store.get(fetch.plan.keys[item])):
                found.append((item, sample))
            places[item] += 1
        return found

    def relay(self, fetch: Fetch) -> Relay:
        """What makes the whole answer's events of upstream's bytes."""
        return Relay(fetch.known.dialect, fetch.plan, fetch.fill)

    def likeness(self, known: Known) -> Hashable:
        """Calls that are alike have one stream, but for the usage at its end, and ids."""
        call = known.call
        counts = call.stream is not None and call.stream.continuous_usage
        parts = (known.keys, call.n, call.batched, counts, self._store.clears, known.model_version)
        return (known.dialect.name, *parts)

    # Writing

    def aborted(self, known: Known, now: float, new: Sequence[tuple[int, Sample]] = ()) -> bytes:
        """The answer to a call that was aborted before its first token, or with that much of it."""
        if known.call.stream and not new:
            return b"".join(self.aborted_events(known, now))
        samples: Sequence[Sequence[Sample]] = self._aborted(known, now)
        if new:
            before = self.plan(known).with_samples(new).stored
            samples = [
                [*some, *none[len(some) :]] for some, none in zip(before, samples, strict=True)
            ]
        if known.call.stream:
            return b"".join(_events(known, samples))
        answers = [[sample.answer for sample in pool] for pool in samples]
        return known.dialect.write(known.call, answers)

    def aborted_events(
        self,
        known: Known,
        now: float,
        states: Mapping[int, bytes] | None = None,
        ended: Collection[int] = (),
    ) -> list[bytes]:
        """The end of a stream that was aborted. `states` are the newest events of choices that each
        have all of it so far; choices that have `ended` are as they are."""
        samples = self._aborted(known, now)
        script = known.dialect.script(known.call, samples)
        if script.finishes or not (states or ended):
            return _events(known, samples)
        events = []
        for choice, said in enumerate(script.deltas):
            if states and choice in states:
                value = orjson.loads(sse.data(states[choice]) or b"null")
                known.dialect.cut(value)
                events.append(sse.event(orjson.dumps(value)))
            elif choice not in ended:
                events += said
        return [*events, sse.DONE]

    def _aborted(self, known: Known, now: float) -> list[list[Sample]]:
        answer = known.dialect.aborted(known.call, self._mint(), now)
        return [[Sample(answer, now, 0.0, 0)] * known.call.n for _ in known.call.items]

    def answer(self, known: Known, plan: Plan) -> bytes:
        """The answer to a call whose samples are all there."""
        return known.dialect.write(known.call, planning.answers(plan))


def _events(known: Known, samples: Sequence[Sequence[Sample]]) -> list[bytes]:
    """A stream of whole samples."""
    dialect, call = known.dialect, known.call
    script = dialect.script(call, samples)
    events = [*script.in_turn(), *script.finishes]
    if call.stream and call.stream.usage and (usage := dialect.usage(call, samples)):
        events.append(usage)
    return [*events, sse.DONE]


def error_body(status: int, kind: str, message: str) -> bytes:
    """An error as OpenAI's and SGLang's clients read it."""
    return orjson.dumps({"error": {"message": message, "type": kind, "code": status}})


def _model(body: Any) -> str:
    """What a parsed body names as its model; empty where it names none."""
    model = body.get("model")
    return model if isinstance(model, str) else ""
