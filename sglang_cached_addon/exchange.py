"""A request's way through the cache, from body bytes to answer bytes.

`receive` reads and plans a request and says what to do: answer (`Hit`), pass on untouched
(`Bypass`), or fetch (`Fetch`), whose upstream answer goes to `complete`. Free of mitmproxy,
clocks and I/O: times and ids are arguments. One object serves one upstream, on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from sglang_cached_addon import cache, keys, policy
from sglang_cached_addon.cache import Plan, Sample, Store
from sglang_cached_addon.dialects import Registry
from sglang_cached_addon.dialects.base import Call, Dialect, Fill, Mint, Split
from sglang_cached_addon.memo import Memo
from sglang_cached_addon.outcome import Counters, Kind, Outcome, Saved
from sglang_cached_addon.policy import Reason, Refused


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
    outcome: Outcome
    saved: Saved
    oldest: float
    """When the oldest of its samples was stored: Unix seconds."""


@dataclass(frozen=True, slots=True)
class Bypass:
    """Not looked up: to be passed on as it came."""

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
        self._memo: Memo[tuple[str, bytes], Known | Reason] = Memo(MEMO_BYTES)

    def receive(self, request: Request, now: float) -> Hit | Fetch | Bypass:
        """Decides a request whose route has a dialect."""
        if reason := policy.lookup_refusal(request.headers):
            return self.bypass(reason)
        found = self._find(self.dialects[request.method, request.path], request.body, now)
        if isinstance(found, Reason):
            return self.bypass(found)
        return self._fetch(found) if isinstance(found, Known) else found

    def lookup(self, method: str, path: str, body: bytes, now: float) -> Hit | None:
        """The answer, if every sample is stored. For a request whose head was found plain; the
        same request may come to `receive` after this, and is not read twice."""
        found = self._find(self.dialects[method, path], body, now)
        return found if isinstance(found, Hit) else None

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
        self.counters.hit(saved)
        return Hit(sample.answer, Outcome(Kind.HIT, 1, 1, age=age), saved, sample.stored_at)

    def _parse(self, dialect: Dialect, body: bytes, raw: bytes) -> Known | Reason:
        try:
            call = dialect.read(keys.parse(body))
        except Refused as refused:
            return refused.reason
        key = self._digesters[dialect.name].key
        is_plain = call.total == 1 and not call.batched and not call.rids
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
        self.counters.hit(hit.saved)
        return hit

    def _assemble(self, known: Known, plan: Plan, now: float) -> Hit:
        samples = list(plan.samples())
        oldest = min(sample.stored_at for sample in samples)
        total = known.call.total
        outcome = Outcome(Kind.HIT, total, total, age=max(0, int(now - oldest)))
        body = known.dialect.write(known.call, cache.answers(plan))
        # Within a generation pools only grow at their end, so this stays the answer.
        hit = Hit(body, outcome, Saved.of(samples), oldest)
        if body is samples[0].answer or self._memo.charge(len(body)):
            known.hit, known.generation = hit, self._store.generation
        return hit

    def _fetch(self, known: Known) -> Fetch:
        plan = cache.plan(known.call, known.keys, self._store)
        fill = known.dialect.trim(known.call, plan.shortfalls, self._mint)
        body = None if fill.body == known.call.body else orjson.dumps(fill.body)
        for rid, unique in fill.rids.items():
            self._rids.setdefault(rid, []).append(unique)
        return Fetch(known.dialect, plan, fill, body, self._store.generation, known.raw)

    def complete(
        self, fetch: Fetch, status: int, body: bytes, *, now: float, seconds: float
    ) -> Completed:
        """Stores what upstream answered, and puts the client's answer together."""
        self._release(fetch)
        if reason := policy.store_refusal(status):
            return self._finish(fetch, None, status, reason)
        try:
            split = fetch.dialect.split(fetch.plan.call, fetch.fill, _parse(body))
        except Refused as refused:
            return self._unreadable(fetch, body, refused.reason)
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
        answer = self._answer(fetch, split, body)
        return self._finish(fetch, answer, status, refusal, len(split.generations))

    def fail(self, fetch: Fetch, reason: Reason, status: int) -> Completed:
        """Ends a fetch that has no answer."""
        self._release(fetch)
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
        for rid, unique in fetch.fill.rids.items():
            left = [known for known in self._rids.get(rid, ()) if known != unique]
            if left:
                self._rids[rid] = left
            else:
                self._rids.pop(rid, None)


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
