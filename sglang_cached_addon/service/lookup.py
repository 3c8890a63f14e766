"""What is stored for a call: from its body's bytes to an answer, or to what is known of it.

Free of mitmproxy, clocks and I/O. One object serves one upstream, on one
thread, and knows which model answers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import inf

import orjson

from sglang_cached_addon.core import fitting, identity, keys, planning
from sglang_cached_addon.core.cache import Sample, Store
from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.ignoring import Ignoring
from sglang_cached_addon.core.memo import Memo
from sglang_cached_addon.core.naming import Naming
from sglang_cached_addon.core.outcome import Kind, Outcome, Saved
from sglang_cached_addon.core.places import pool_of
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import PLAIN, Reason, Refused, Terms
from sglang_cached_addon.dialects import Registry
from sglang_cached_addon.dialects.base import Dialect, nature_of
from sglang_cached_addon.service.findings import Hit, Known, Places, Stamp, events_of, model_of
from sglang_cached_addon.service.reducing import Reducing, ignored
from sglang_cached_addon.wire import http1

MEMO_BYTES = 16 << 20
"""How many bytes the bodies read before may take, with what was made of them: an estimate."""

MEMO_OVERHEAD = 2048
"""How many bytes an entry of the memo takes, beside what grows with its body."""

_HIT_OVERHEAD = 1024
"""Bytes of a remembered answer beside its body, where a call has several."""

_DAY = 86_400
"""The seconds of a day."""

FIRST: Places = ()
"""Stands for the places of calls that are of no run: the first ones."""


class Lookup:
    """Finds what is stored for calls."""

    def __init__(self, dialects: Registry, store: Store, ignoring: Ignoring | None = None) -> None:
        """With `ignoring`, rules leave something out of keys."""
        self.dialects = dialects
        self.rules = ignoring.rules if ignoring else ()
        """What is left out of keys."""
        self.server = identity.UNKNOWN
        """What is known of the server that answers."""
        self.model_version = 0
        """The version of the model that answers: it rises when another one may have answered in
        between."""
        self._store = store
        self._reducing = Reducing(ignoring, store) if ignoring else None
        self._naming = Naming()
        self._memo: Memo[tuple[str, bytes, bytes], Known | Reason] = Memo(MEMO_BYTES)

    # The model

    def enter(self, fingerprint: str, epochs: Epochs, server: Server, model_version: int) -> None:
        """Notes that from now on this model answers, on this server."""
        self._naming = Naming(fingerprint, epochs)
        self.server, self.model_version = server, model_version
        self._memo.clear()

    @property
    def fingerprint(self) -> str:
        """The model that answers; empty where nobody knows it."""
        return self._naming.fingerprint

    # Reading

    def find(
        self,
        method: str,
        path: str,
        body: bytes,
        terms: Terms = PLAIN,
        tenant: bytes = b"",
        *,
        is_of_run: bool = False,
    ) -> Hit | Known | Reason:
        """What is stored or known for a call whose route has a dialect, or why it is not looked up.
        Nothing is counted yet. `tenant` is part of its keys, beside its body. A call that
        `is_of_run` is only read, unless any sample will do for it."""
        dialect = self.dialects[method, path]
        if self.server.dates_prompts:
            tenant = self._of_day(dialect, tenant)
        asked = (dialect.name, tenant, body)
        known = self._memo.get(asked)
        if known is None:
            raw = self._naming.raw(dialect.name, tenant, body)
            key = self._store.find(raw)
            is_usual = terms.since == -inf and not is_of_run
            if key and is_usual and (pool := self._store.get(key)):
                return Hit.plain(key, pool[0], model_of(orjson.loads(body)))
            known = self._parse(dialect, tenant, body, raw)
            self._memo.put(asked, known, MEMO_OVERHEAD + 4 * len(body))
        if isinstance(known, Reason) or (is_of_run and known.draws):
            return known
        if terms.since == -inf and (hit := self._remembered(known, FIRST)):
            return hit
        plan = self.plan(known, terms)
        if plan.have < known.call.total:
            return known
        return self._written(known, plan, FIRST if terms.since == -inf else None) or known

    def read(self, method: str, path: str, body: bytes, tenant: bytes) -> Known | Reason:
        """As `find`, but nothing is looked up, and nothing remembered."""
        dialect = self.dialects[method, path]
        if self.server.dates_prompts:
            tenant = self._of_day(dialect, tenant)
        return self._parse(dialect, tenant, body, self._naming.raw(dialect.name, tenant, body))

    def recent(self) -> list[Known]:
        """The calls that were read lately."""
        return [known for known in self._memo.values() if isinstance(known, Known)]

    def draw(self, known: Known, places: Places) -> Hit | None:
        """The answer to a call whose samples are at these places of its pools, if all of them are
        at hand."""
        if hit := self._remembered(known, places):
            return hit
        pairs = [(self._store.get(key), some) for key, some in zip(known.keys, places, strict=True)]
        if any(some[-1] >= len(pool) for pool, some in pairs):
            return None
        stored = tuple(tuple(pool[place] for place in some) for pool, some in pairs)
        return self._written(known, Plan(known.call, known.keys, stored, places), places)

    def _of_day(self, dialect: Dialect, tenant: bytes) -> bytes:
        """The tenant, with the day (UTC) where answers hold for no longer. It is the day on which a
        call is asked for: an answer that comes after midnight was begun before."""
        if not nature_of(dialect).holds_for_a_day:
            return tenant
        return b"%b, day %d" % (tenant, self._store.now // _DAY)

    def _parse(self, dialect: Dialect, tenant: bytes, body: bytes, raw: bytes) -> Known | Reason:
        if not keys.is_quick(body):
            return Reason.TOO_LARGE
        try:
            call = fitting.fitted(dialect.read(keys.parse(body)), self.server)
        except Refused as refused:
            return refused.reason
        known = self.know(dialect, tenant, call, raw)
        return self._reducing.reduced(known) if self._reducing else known

    def know(self, dialect: Dialect, tenant: bytes, call: Call, raw: bytes = b"") -> Known:
        """A call that was read, with its keys; `raw` names its body."""
        is_one = call.total == 1 and not (call.batched or call.rids or call.stream)
        naming = partial(self._naming.keys, dialect.name, tenant)
        names = naming(call.items)
        name = raw if is_one and call.is_verbatim else b""
        return Known(
            dialect,
            call,
            names,
            model_of(call.body),
            self.model_version,
            name,
            has_model=bool(self.fingerprint),
            draws=not (call.is_greedy or call.is_pure or fitting.is_fixed(call, self.server)),
            pools=tuple(map(pool_of, names)),
            naming=naming,
        )

    def _written(self, known: Known, plan: Plan, places: Places | None) -> Hit | None:
        """The answer of a plan that lacks nothing, unless it is large; it is remembered as that of
        these places, if there are such."""
        if plan.is_large:
            return None
        hit = self.hit(known, plan)
        if places is not None:
            if known.generation != self._store.generation:
                known.hits.clear()
                known.generation = self._store.generation
            own = 0 if hit.body is plan.stored[0][0].answer else len(hit.body)
            if self._memo.charge(own + (_HIT_OVERHEAD if places else 0)):
                known.hits[places] = hit
        return hit

    def _remembered(self, known: Known, places: Places) -> Hit | None:
        """The answer that the call had of these places, if that has not changed."""
        hit = known.hits.get(places)
        # Within a generation pools only grow at their end.
        if not hit or known.generation != self._store.generation:
            return None
        if self._store.is_expired(hit.outcome.oldest):
            return None
        self._store.touch(known.keys)
        return hit

    def hit(self, known: Known, plan: Plan) -> Hit:
        """The answer to a call whose samples are all there."""
        samples = list(plan.samples())
        oldest = min(sample.stored_at for sample in samples)
        total = known.call.total
        places = planning.shown_places(plan)
        outcome = Outcome(Kind.HIT, total, total, oldest=oldest, key=known.key, places=places)
        longest = max(sample.tokens for sample in samples)
        is_stream = known.call.stream is not None
        events = http1.chunked(events_of(known, plan.stored)) if is_stream else b""
        body = events or self.answer(known, plan)
        if known.left_out:
            outcome = replace(outcome, detail=ignored(known, plan))
        return Hit(body, outcome, Saved.of(samples), known.model, is_stream, longest)

    def is_present(self, known: Known) -> bool:
        """Whether its keys are those of the model that answers now."""
        return known.model_version == self.model_version

    def answer(self, known: Known, plan: Plan) -> bytes:
        """The answer to a call whose samples are all there."""
        return known.dialect.write(known.call, planning.answers(plan))

    def plan(self, known: Known, terms: Terms = PLAIN, more: planning.More | None = None) -> Plan:
        """What is at hand for a call, and what is short."""
        return planning.plan(known.call, known.keys, self._store, terms.since, more)

    def again(self, plan: Plan, terms: Terms = PLAIN, more: planning.More | None = None) -> Plan:
        """The plan with what is at hand by now of what was short."""
        needs = plan.needs
        return plan.again(needs, self._store, terms.since, more) if needs else plan

    def pool(self, key: bytes) -> Sequence[Sample]:
        """The samples of a pool that are at hand."""
        return self._store.get(key)

    def size(self, key: bytes) -> float:
        """As `Store.size`."""
        return self._store.size(key)

    def stamp(self, known: Known) -> Stamp:
        """What must not change until an answer to this call is stored."""
        return Stamp(self._store.cleared(known.keys), known.model_version)

    def forget(self) -> None:
        """Forgets the calls that were read, and their answers."""
        self._memo.clear()
