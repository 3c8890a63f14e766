"""What would become of a call, and why: for people.

The call is read, and its samples are looked for, by what reads and plans all calls; but nothing is
used, counted, taken or asked of upstream. What others are fetching just now does not count. Knows
asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf
from typing import Any

from sglang_cached_addon.core import planning, policy, refusals, runs
from sglang_cached_addon.core.call_head import CallHead, CallHeads, Fields, by_name
from sglang_cached_addon.core.outcome import Kind
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Mode, Reason, Terms
from sglang_cached_addon.dialects.base import portioned
from sglang_cached_addon.service import lists
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.families import Families
from sglang_cached_addon.service.findings import Known
from sglang_cached_addon.service.nearby import NOTHING, Nearby, Nearest
from sglang_cached_addon.service.peek import Peek
from sglang_cached_addon.service.reducing import ignored
from sglang_cached_addon.service.runs import ShownRuns
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of a call."""

    outcome: Kind
    reason: Reason | None = None
    text: str = ""
    api: str | None = None
    keys: tuple[bytes, ...] = ()
    has: int = 0
    wants: int = 0
    nearest: Nearest = NOTHING
    run: str = ""
    ignored: tuple[str, ...] = ()
    """The names of the rules that leave something out of its keys."""
    is_admitted: bool | None = None
    """Whether upstream has ever let such a caller generate; it is asked first where it has not.
    None for a call that is passed on."""

    def as_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "key": self.keys[0].hex() if self.keys else None,
            "keys": [key.hex() for key in self.keys],
            "api": self.api,
            "has": self.has,
            "wants": self.wants,
            "nearest": [near.as_json() for near in self.nearest.calls],
            "looked_through": round(self.nearest.share, 3),
            "run": self.run or None,
            "ignored": list(self.ignored),
            "is_admitted": self.is_admitted,
            "text": self.text,
        }


class Explaining:
    """Explains calls to one service."""

    def __init__(
        self,
        exchange: Exchange,
        upstream: Upstream,
        store: OpenStore,
        nearby: Nearby,
        known_runs: ShownRuns,
        heads: CallHeads,
        *,
        mode: Mode = Mode.READWRITE,
    ) -> None:
        self._lookup = exchange.lookup
        self._upstream, self._store, self._nearby = upstream, store, nearby
        self._runs, self._heads = known_runs, heads
        self._mode = mode

    async def explain(self, path: str, body: bytes, fields: Fields = ()) -> Explanation:
        """What would become of a POST with this body. Raises ValueError for a bad name of a
        run."""
        in_path, path = runs.split(path)
        headers = by_name(fields)
        headers.setdefault(b"content-type", b"application/json")
        named = headers.get(runs.HEADER)
        name = runs.chosen(in_path, named.decode("latin-1") if named is not None else None)
        head = self._heads.read("POST", path, headers, name)
        found = await self._read(head, body)
        dialects = self._lookup.dialects
        dialect = dialects.get(("POST", path)) or dialects.get(("POST", path.partition("?")[0]))
        if isinstance(found, Reason):
            text = f"It is not looked up: {found.meaning}."
            return Explanation(Kind.BYPASS, found, text, dialect.name if dialect else None)
        return await self._look(head, *found)

    async def _read(self, head: CallHead, body: bytes) -> tuple[Known, Terms] | Reason:
        """What is asked, or why it is not looked up."""
        path = head.path
        if ("POST", path) not in self._lookup.dialects:
            bare = path.partition("?")[0]
            is_known = ("POST", bare) in self._lookup.dialects
            return Reason.QUERY if is_known else refusals.route_refusal(bare)
        terms = policy.terms(self._mode, head.directives, time.time())
        if isinstance(terms, Reason) or head.refusal:
            return terms if isinstance(terms, Reason) else head.refusal or Reason.HEADER
        if len(body) > policy.MAX_BODY:
            return Reason.TOO_LARGE
        dialect = self._lookup.dialects["POST", path]
        if portioned(dialect):
            found = await lists.looked_at(self._lookup, dialect, body, head.tenant)
        else:
            found = self._lookup.read("POST", path, body, head.tenant)
        if isinstance(found, Reason):
            return found
        return (found, terms) if found.has_model else Reason.NO_MODEL

    async def _look(self, head: CallHead, known: Known, terms: Terms) -> Explanation:
        peek = Peek(self._store)
        await peek.bring(dict.fromkeys(known.keys, known.call.n))
        empty = next((i for i, key in enumerate(known.keys) if not peek.get(key)), None)
        run = head.run if known.draws else ""
        unknown = await self._draw(run, known, peek) if run else ""
        plan, detail = await self._plan(known, terms, peek)
        has, wants = plan.have, known.call.total
        kind = Kind.HIT if has == wants else Kind.PARTIAL if has else Kind.MISS
        nearest = NOTHING
        if kind is not Kind.HIT and empty is not None:
            nearest = await self._nearby.of(known, empty)
        text = f"{has} of {wants} samples are stored{detail}."
        rules = tuple(dict.fromkeys(name for one in known.left_out for name in one.rules))
        if rules:
            text = f"{text} Left out of its key is what these rules match: {', '.join(rules)}."
        if known.left_out and ignored(known, plan):
            text = f"{text} Some of it is stored for calls in which that was something else."
        if kind is not Kind.HIT and run:
            taken = unknown or "samples that the run has taken do not count"
            text = f"{text} It is a call of run {run}: {taken}."
        if kind is not Kind.HIT and terms.since > -inf:
            text = f"{text} On the terms of the request, or of --mode, older samples do not count."
        if empty is not None and kind is not Kind.HIT:
            text = f"{text} {nearest.sentence()}"
        return Explanation(
            kind,
            terms.denial or terms.refusal if kind is not Kind.HIT else None,
            text,
            known.dialect.name,
            known.keys,
            has,
            wants,
            nearest,
            run,
            rules,
            self._is_admitted(head, known),
        )

    async def _draw(self, run: str, known: Known, peek: Peek) -> str:
        """Leaves what the next call of a run may have: nothing, where that is not known; why it is
        not."""
        try:
            for key in set(known.keys):
                peek.keep(key, await self._runs.free(run, key, peek.get(key)))
        except OSError as e:
            for key in known.keys:
                peek.keep(key, ())
            return f"nothing stored is given to it, as {e}"
        return ""

    async def _plan(self, known: Known, terms: Terms, peek: Peek) -> tuple[Plan, str]:
        """What is there for a call, and what is to be said of that."""
        plan = planning.plan(known.call, known.keys, peek, terms.since)
        if not (plan.needs and known.call.is_greedy and terms.since == -inf):
            return plan, ""
        families = Families(self._lookup, peek)
        found = await families.reuse(known, plan, None, is_stored=False)
        plan = plan.with_samples((one.item, one.sample) for one in found)
        return plan, ", as answers to calls with another limit of tokens" if found else ""

    def _is_admitted(self, head: CallHead, known: Known) -> bool:
        upstream = self._upstream
        return upstream.inquiry.is_offline or head.asker(known.model) in upstream.gate.admission
