"""A request's way through the cache, from body bytes to answer bytes.

`receive` reads and plans a request and says what to do: answer (`Hit`), read along with
another's fetch (`Follow`), pass on untouched (`Bypass`), or fetch (`Fetch`), whose upstream
answer goes to `complete`, or piece by piece to `relay`. Free of mitmproxy, clocks and I/O:
times and ids are arguments. One object serves one upstream, on one thread.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from sglang_cached_addon import cache, keys, policy, sse, wire
from sglang_cached_addon.cache import Plan, Sample, Store
from sglang_cached_addon.dialects import Registry
from sglang_cached_addon.dialects.base import Call, Dialect, Fill, Mint, Split
from sglang_cached_addon.inflight import Follower, Stream, Streams
from sglang_cached_addon.memo import Memo
from sglang_cached_addon.outcome import Counters, Kind, Outcome, Saved
from sglang_cached_addon.policy import Reason, Refused
from sglang_cached_addon.relay import Relay, View


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent. `path` is as on the wire, header names are lower-case."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """Every sample was stored: the answer's body."""

    body: bytes
    """Of a stream, in chunks of HTTP: one event each."""
    outcome: Outcome
    saved: Saved
    oldest: float
    """When the oldest of its samples was stored: Unix seconds."""
    is_stream: bool = False
    longest: int = 0
    """Completion tokens of the longest of its samples."""


@dataclass(frozen=True, slots=True)
class Bypass:
    """Not looked up: to be passed on as it came."""

    outcome: Outcome


@dataclass(frozen=True, slots=True, eq=False)
class Lead:
    """A streamed fetch: its events, for whom they are, and who else reads them."""

    relay: Relay
    view: View
    """Of the client that the fetch was begun for."""
    is_verbatim: bool
    """That client gets upstream's bytes as they are."""
    stream: Stream
    identity: Hashable
    """What a call is like that may read along."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Another's fetch gives the same answer: to be read along with."""

    follower: Follower
    view: View
    outcome: Outcome


@dataclass(frozen=True, slots=True, eq=False)
class Fetch:
    """Samples are short: `body` goes upstream (None: the client's own bytes)."""

    dialect: Dialect
    plan: Plan
    fill: Fill
    body: bytes | None
    generation: int
    """Of the store, when this was planned."""
    raw: bytes = b""
    """The name of the client's body, where the first sample of its pool answers it."""
    lead: Lead | None = None
    """If a stream is wanted."""

    @property
    def is_partial(self) -> bool:
        """Whether upstream is asked for less than the client asked for."""
        return self.plan.have > 0


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a fetch. `body` is None where upstream's own bytes are the answer."""

    body: bytes | None
    outcome: Outcome
    status: int


@dataclass(slots=True)
class Known:
    """A body that was read, and the answer that it had."""

    dialect: Dialect
    call: Call
    keys: tuple[bytes, ...]
    raw: bytes = b""
    """The name of the body, where the first sample of its pool answers it."""
    hit: Hit | None = None
    generation: int = -1
    """Of the store, when `hit` was put together."""


MEMO_BYTES = 16 << 20
"""Of bodies read before, with what was made of them: an estimate."""

MEMO_OVERHEAD = 2048
"""Bytes of an entry beside what grows with the body."""


@dataclass(slots=True)
class Live:
    """A request under way."""

    started: float
    """Seconds, on the caller's clock."""
    fetch: Fetch | None = None
    """What upstream was asked for, until its answer is here."""
    outcome: Outcome | None = None
    """None until it is decided."""


class Exchange:
    """The cache in front of one upstream."""

    def __init__(self, dialects: Registry, store: Store, mint: Mint, fingerprint: str = "") -> None:
        self.dialects = dialects
        self.counters = Counters()
        self._store = store
        self._mint = mint
        self._digesters = {
            dialect.name: keys.Digester(fingerprint, dialect.name) for dialect in dialects.values()
        }
        self._rids: dict[str, list[str]] = {}
        self.streams = Streams()
        """Under way."""
        self._memo: Memo[tuple[str, bytes], Known | Reason] = Memo(MEMO_BYTES)

    def receive(
        self, request: Request, now: float, *, may_follow: bool = True
    ) -> Hit | Follow | Fetch | Bypass:
        """Decides a request whose route has a dialect."""
        if reason := policy.lookup_refusal(request.headers):
            return self.bypass(reason)
        found = self._find(self.dialects[request.method, request.path], request.body, now)
        if isinstance(found, Reason):
            return self.bypass(found)
        if isinstance(found, Known):
            return (self._follow(found) if may_follow else None) or self._fetch(found)
        self.counters.hit(found.saved)
        return found

    def lookup(
        self, method: str, path: str, body: bytes, now: float, *, streams: bool = True
    ) -> Hit | None:
        """The answer, if every sample is stored. For a request whose head was found plain; the
        same request may come to `receive` after this, and is not read twice. Without `streams`,
        only JSON is answered."""
        found = self._find(self.dialects[method, path], body, now)
        if not isinstance(found, Hit) or (found.is_stream and not streams):
            return None
        self.counters.hit(found.saved)
        return found

    def bypass(self, reason: Reason) -> Bypass:
        """Counts a request that is not looked up."""
        outcome = Outcome(Kind.BYPASS, reason=reason)
        self.counters.add(outcome)
        return Bypass(outcome)

    def _find(self, dialect: Dialect, body: bytes, now: float) -> Hit | Known | Reason:
        """The answer to a body, or what is known of it: from memory, or by its name, or read."""
        known = self._memo.get((dialect.name, body))
        if known is None:
            raw = self._digesters[dialect.name].raw(body)
            key = self._store.find(raw)
            if key and (pool := self._store.get(key)):
                return self._plain(pool[0], now)
            known = self._parse(dialect, body, raw)
            self._memo.put((dialect.name, body), known, MEMO_OVERHEAD + 4 * len(body))
        return known if isinstance(known, Reason) else self._hit(known, now) or known

    def _plain(self, sample: Sample, now: float) -> Hit:
        """A sample as the whole answer, which it is to a plain call for one."""
        age = max(0, int(now - sample.stored_at))
        saved = Saved(1, sample.tokens, sample.seconds)
        return Hit(sample.answer, Outcome(Kind.HIT, 1, 1, age=age), saved, sample.stored_at)

    def _parse(self, dialect: Dialect, body: bytes, raw: bytes) -> Known | Reason:
        try:
            call = dialect.read(keys.parse(body))
        except Refused as refused:
            return refused.reason
        key = self._digesters[dialect.name].key
        is_plain = call.total == 1 and not (call.batched or call.rids or call.stream)
        pools = tuple([key(item) for item in call.items])
        return Known(dialect, call, pools, raw if is_plain else b"")

    def _hit(self, known: Known, now: float) -> Hit | None:
        hit = known.hit
        if hit is None or known.generation != self._store.generation:
            plan = cache.plan(known.call, known.keys, self._store)
            if plan.have < known.call.total:
                return None
            hit = self._assemble(known, plan, now)
        elif (age := max(0, int(now - hit.oldest))) != hit.outcome.age:
            known.hit = hit = replace(hit, outcome=replace(hit.outcome, age=age))
        return hit

    def _assemble(self, known: Known, plan: Plan, now: float) -> Hit:
        samples = list(plan.samples())
        oldest = min(sample.stored_at for sample in samples)
        total = known.call.total
        outcome = Outcome(Kind.HIT, total, total, age=max(0, int(now - oldest)))
        longest = max(sample.tokens for sample in samples)
        is_stream = known.call.stream is not None
        body = _replay(known, plan) if is_stream else _write(known, plan)
        # Within a generation pools only grow at their end, so this stays the answer.
        hit = Hit(body, outcome, Saved.of(samples), oldest, is_stream, longest)
        if body is samples[0].answer or self._memo.charge(len(body)):
            known.hit, known.generation = hit, self._store.generation
        return hit

    def _fetch(self, known: Known) -> Fetch:
        plan = cache.plan(known.call, known.keys, self._store)
        fill = known.dialect.trim(known.call, plan.shortfalls, self._mint)
        body = None if fill.body == known.call.body else orjson.dumps(fill.body)
        for rid, unique in fill.rids.items():
            self._rids.setdefault(rid, []).append(unique)
        lead = self._lead(known, plan, fill) if known.call.stream else None
        return Fetch(known.dialect, plan, fill, body, self._store.generation, known.raw, lead)

    def _identity(self, known: Known) -> Hashable:
        """Calls of one identity have one answer, but for the usage at its end, and ids."""
        call = known.call
        counts = call.stream is not None and call.stream.continuous_usage
        parts = (known.keys, call.n, call.batched, counts, self._store.generation)
        return (known.dialect.name, *parts)

    def _lead(self, known: Known, plan: Plan, fill: Fill) -> Lead:
        view = View(known.dialect, known.call)
        asked = known.call.body.get("stream_options") == fill.body.get("stream_options")
        is_verbatim = asked and not (plan.have or fill.rids)
        identity = self._identity(known)
        relay = Relay(known.dialect, plan, fill)
        return Lead(relay, view, is_verbatim, self.streams.lead(identity), identity)

    def _follow(self, known: Known) -> Follow | None:
        if known.call.stream is None:
            return None
        stream = self.streams.find(self._identity(known))
        if stream is None:
            return None
        total = known.call.total
        view = View(known.dialect, known.call)
        return Follow(Follower(stream), view, Outcome(Kind.COLLAPSED, 0, total))

    def complete(
        self, fetch: Fetch, status: int, body: bytes, *, now: float, seconds: float
    ) -> Completed:
        """Stores what upstream answered, and puts the client's answer together."""
        self._release(fetch)
        if fetch.lead:  # a stream was asked for
            fetch.lead.stream.end(complete=False)
            return self._unreadable(fetch, body, Reason.UNREADABLE)
        if reason := policy.store_refusal(status):
            return self._finish(fetch, None, status, reason)
        try:
            split = fetch.dialect.split(fetch.plan.call, fetch.fill, _parse(body))
        except Refused as refused:
            return self._unreadable(fetch, body, refused.reason)
        answer = self._answer(fetch, split, body)
        return self._store_split(fetch, split, answer, now=now, seconds=seconds)

    def _store_split(
        self, fetch: Fetch, split: Split, answer: bytes | None, *, now: float, seconds: float
    ) -> Completed:
        refusal = split.refusal
        if fetch.generation != self._store.generation:
            # Who clears the cache wants nothing back that was on its way then.
            refusal = refusal or Reason.CLEARED
        if not refusal:
            cache.commit(
                fetch.plan,
                fetch.dialect.name,
                split.generations,
                self._store,
                now=now,
                seconds=seconds,
                raw=fetch.raw,
            )
        return self._finish(fetch, answer, 200, refusal, len(split.generations))

    def open(self, fetch: Fetch) -> Outcome:
        """Upstream answers with a stream: what can be said of it now."""
        assert fetch.lead
        fetch.lead.stream.open()
        kind = Kind.PARTIAL if fetch.is_partial else Kind.MISS
        return Outcome(kind, fetch.plan.have, fetch.plan.call.total, is_open=True)

    def relay(self, fetch: Fetch, data: bytes) -> bytes | list[bytes]:
        """What of upstream's bytes, and of the store, the client gets now; followers get theirs.

        When the stream is done (`is_done` of its relay), `complete_stream` is due, before the
        client has the last word: who repeats a request at once finds it answered."""
        assert fetch.lead
        if fetch.lead.is_verbatim:
            fetch.lead.stream.publish(fetch.lead.relay.feed(data))
            return data
        if not data:  # the end, be it in the middle of an event
            return fetch.lead.relay.rest
        events = fetch.lead.relay.feed(data)
        fetch.lead.stream.publish(events)
        return fetch.lead.view.show(events)

    def complete_stream(self, fetch: Fetch, *, now: float, seconds: float) -> Outcome:
        """Stores what a stream that is done has brought."""
        assert fetch.lead
        self._release(fetch)
        try:
            split = fetch.lead.relay.split()
        except Refused as refused:
            completed = self._finish(fetch, None, 200, refused.reason)
        else:
            stored = sum(sample.tokens for sample in fetch.plan.samples())
            generated = sum(sample.tokens for sample in split.generations)
            fetch.lead.stream.tokens = stored + generated
            completed = self._store_split(fetch, split, None, now=now, seconds=seconds)
        fetch.lead.stream.end(complete=True)
        return completed.outcome

    def followed(self, follow: Follow) -> None:
        """Counts one who has read along to the end."""
        self.counters.follow(Saved(follow.outcome.want, follow.follower.tokens))

    def fail(self, fetch: Fetch, reason: Reason, status: int, *, ended: bool = False) -> Completed:
        """Ends a fetch that has no answer, or not all of it. `ended`: upstream ended it in good
        order, as followers are to see."""
        self._release(fetch)
        if fetch.lead:
            fetch.lead.stream.end(complete=ended)
        return self._finish(fetch, None, status, reason)

    def abort_targets(self, body: bytes) -> list[str]:
        """What upstream calls the `rid` of an `/abort_request`, if it is one of ours."""
        try:
            rid = orjson.loads(body).get("rid")
        except (ValueError, AttributeError):
            return []
        return list(self._rids.get(rid, ())) if isinstance(rid, str) else []

    def _answer(self, fetch: Fetch, split: Split, body: bytes) -> bytes | None:
        if fetch.is_partial:
            whole = cache.answers(fetch.plan, split.generations)
            return fetch.dialect.write(fetch.plan.call, whole)
        return _with_client_rids(body, fetch.fill.rids)

    def _unreadable(self, fetch: Fetch, body: bytes, reason: Reason) -> Completed:
        """A 200 that is not what was asked for: relayed where it answers the client's own
        request, and an error where it answers a trimmed one."""
        if not fetch.is_partial:
            return self._finish(fetch, _with_client_rids(body, fetch.fill.rids), 200, reason)
        error = error_body(
            502,
            "BadGateway",
            f"sglang-cached had {fetch.plan.have} of {fetch.plan.call.total} samples and asked "
            "upstream for the others, but cannot read its answer. Repeat the request with other "
            "numbers of samples, or clear the cache (POST /cache/clear).",
        )
        return Completed(error, self._finish(fetch, None, 200, reason).outcome, 502)

    def _finish(
        self,
        fetch: Fetch,
        body: bytes | None,
        status: int,
        reason: Reason | None,
        generated: int = 0,
    ) -> Completed:
        kind = Kind.PARTIAL if fetch.is_partial else Kind.MISS
        outcome = Outcome(kind, fetch.plan.have, fetch.plan.call.total, reason, status)
        # Stored samples count as served only if they were.
        saved = Saved.of(fetch.plan.samples()) if generated else Saved()
        self.counters.add(outcome, saved, generated)
        return Completed(body, outcome, status)

    def _release(self, fetch: Fetch) -> None:
        """Nobody is to find the fetch any more."""
        if fetch.lead:
            self.streams.drop(fetch.lead.identity, fetch.lead.stream)
        for rid, unique in fetch.fill.rids.items():
            left = [known for known in self._rids.get(rid, ()) if known != unique]
            if left:
                self._rids[rid] = left
            else:
                self._rids.pop(rid, None)


def _write(known: Known, plan: Plan) -> bytes:
    return known.dialect.write(known.call, cache.answers(plan))


def _replay(known: Known, plan: Plan) -> bytes:
    """A stream from the store, as it goes over the wire."""
    dialect, call = known.dialect, known.call
    script = dialect.script(call, plan.stored)
    events = [*script.in_turn(), *script.finishes]
    if call.stream and call.stream.usage and (usage := dialect.usage(call, plan.stored)):
        events.append(usage)
    return wire.chunked([*events, sse.DONE])


def error_body(status: int, kind: str, message: str) -> bytes:
    """An error as OpenAI's and SGLang's clients read it."""
    return orjson.dumps({"error": {"message": message, "type": kind, "code": status}})


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        raise Refused(Reason.UNREADABLE) from None


def _with_client_rids(body: bytes, rids: Mapping[str, str]) -> bytes | None:
    """Upstream's bytes with the client's ids in place of ours; None where they are the same.

    Ours are unique strings, so that wherever SGLang echoes one, it is one of these.
    """
    for rid, unique in rids.items():
        body = body.replace(unique.encode(), orjson.dumps(rid)[1:-1])
    return body if rids else None
