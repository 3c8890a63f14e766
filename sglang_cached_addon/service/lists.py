"""Calls for long lists that generate nothing: read beside the event loop, answered in portions.

Each portion is looked up, and what is short of it fetched, as a call of its own; all of them are
put together to one answer, of one model. So the work between two turns of the loop does not grow
with the list, and of what has come only the answers are held, no object for each. Knows asyncio,
and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.call_head import Fields
from sglang_cached_addon.core.outcome import NOTHING, Kind, Outcome, Saved
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason, Refused, Terms
from sglang_cached_addon.dialects.base import Dialect, portioned
from sglang_cached_addon.service.asking import Answer, Ask, Reply
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import Hit, Known, model_of
from sglang_cached_addon.service.lookup import Lookup
from sglang_cached_addon.service.merging import MERGE_SECONDS, Merge, collapsed
from sglang_cached_addon.service.pursuit import Pursuit

PORTION = 256
"""So many inputs are looked up in one go, in 3 to 5 ms, and asked for in one call: a server that
counts their tokens beside does nothing else for 10 ms or so."""

AT_ONCE = 4
"""So many portions are asked for at a time: while one is taken in, upstream has others to do."""

MAX_ROWS = 200_000
"""How many inputs a list may have that is looked up."""

SHORT = 2 << 10
"""A body of so many bytes has at most a thousand inputs, of one byte each."""

LONG = 64 << 10
"""A body of more bytes than these is read beside the event loop, whatever is in it."""


class Lists:
    """Answers such calls."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._lookup = means.exchange.lookup

    def is_long(self, ask: Ask) -> bool:
        """Whether a call whose body is not `SHORT` may be for so much that it is to be read beside
        the event loop."""
        if not portioned(self._dialect(ask)):
            return False
        return len(ask.body) > LONG or ask.body.count(b",") > PORTION

    def _dialect(self, ask: Ask) -> Dialect:
        return self._lookup.dialects[ask.head.method, ask.head.path]

    async def read(self, ask: Ask) -> Sequence[Call] | Reason:
        """The call, and if it is more than one portion, those; or why it is not looked up."""
        if not keys.is_quick(ask.body):
            return Reason.TOO_LARGE
        return await asyncio.to_thread(_read, self._dialect(ask), ask.body)

    def known(self, ask: Ask, call: Call, tenant: bytes) -> Known:
        """A call of one portion, as others are known."""
        return self._lookup.know(self._dialect(ask), tenant, call)

    async def answer(
        self, ask: Ask, calls: Sequence[Call], tenant: bytes, terms: Terms, *, is_alone: bool
    ) -> Answer | None:
        """The answer to a call of many portions; None where another model has come meanwhile, or
        the credential was refused."""
        call, *portions = calls
        dialect, version = self._dialect(ask), self._lookup.model_version
        whole = Known(dialect, call, (), model_of(call.body), version)
        found = [_Found() for _ in portions]
        slots, end = asyncio.Semaphore(AT_ONCE), _End()
        under_way: set[asyncio.Task[None]] = set()

        async def bring(pursuit: Pursuit, into: _Found) -> None:
            try:
                plan = await pursuit.gather(_at_once)
                if isinstance(plan, Plan):
                    into.take(plan, pursuit)
                    if into.confirming:  # no more is asked for than is stored, or it would pile up
                        await asyncio.wait(into.confirming, timeout=MERGE_SECONDS)
                    return
            finally:
                slots.release()
            end.is_known, end.answer = True, plan
            for task in under_way - {asyncio.current_task()}:
                task.cancel()  # at once: the call has one end, and is counted once
            raise end

        try:
            async with asyncio.TaskGroup() as tasks:
                for portion, into in zip(portions, found, strict=True):
                    known = self._lookup.know(dialect, tenant, portion)
                    pursuit = Pursuit(
                        self._means, ask, known, terms,
                        is_alone=is_alone, merge=Merge(self._means, whole),
                    )  # fmt: skip
                    if pursuit.plan.needs:
                        await slots.acquire()
                        if not end.is_known:
                            under_way.add(task := tasks.create_task(bring(pursuit, into)))
                            task.add_done_callback(under_way.discard)
                    else:
                        into.take(pursuit.plan, pursuit)
                    await asyncio.sleep(0)  # others have their turn
                    if end.is_known or not self._lookup.is_present(whole):
                        raise end
        except* _End:
            pass
        if end.is_known or not self._lookup.is_present(whole):
            return end.answer
        return await self._together(whole, found)

    async def _together(self, whole: Known, found: Sequence[_Found]) -> Hit | Reply | None:
        """The answer of all portions."""
        if confirming := {task for one in found for task in one.confirming if not task.done()}:
            await asyncio.wait(confirming, timeout=MERGE_SECONDS)
        if not self._lookup.is_present(whole):
            return None

        def written() -> bytes:
            answers = [(answer,) for one in found for answer in one.answers]
            return whole.dialect.write(whole.call, answers)

        body = await asyncio.to_thread(written)
        exchange, total = self._means.exchange, whole.call.total
        saved = Saved(
            sum(one.saved.samples for one in found),
            sum(one.saved.tokens for one in found),
            max(one.saved.seconds for one in found),
        )
        headers = next((one.headers for one in reversed(found) if one.headers is not None), None)
        if headers is not None:
            kind = Kind.PARTIAL if saved.samples else Kind.MISS
            reason = next((one.refusal for one in found if one.refusal), None)
            outcome = Outcome(kind, saved.samples, total, reason)
            exchange.counters.add(outcome, saved)
            return Reply(200, headers, body, outcome)
        oldest = min(one.oldest for one in found)
        hit = Hit(body, Outcome(Kind.HIT, total, total, oldest=oldest), saved, whole.model)
        if any(one.has_waited for one in found):
            return collapsed(exchange, hit, saved)
        exchange.counters.hit(saved)
        return hit


class _End(Exception):
    """What is missing of a call's portions is not wanted any more."""

    is_known = False
    """One of them has told what becomes of the call."""
    answer: Answer | None = None
    """What its client gets then; None where it is to be pursued anew."""


@dataclass(slots=True)
class _Found:
    """What has come for a portion."""

    answers: Sequence[bytes] = ()
    """The sample of each of its items."""
    saved: Saved = NOTHING
    oldest: float = inf
    """When the oldest of them was stored."""
    confirming: set[asyncio.Task[None]] = field(default_factory=set)
    """As `Merge.confirming`."""
    headers: Fields | None = None
    refusal: Reason | None = None
    """As in `Merge`."""
    has_waited: bool = False

    def take(self, plan: Plan, pursuit: Pursuit) -> None:
        """Takes what was found for a plan that lacks nothing."""
        merge = pursuit.merge
        samples = [pool[0] for pool in plan.stored]
        self.answers = [sample.answer for sample in samples]
        self.oldest = min(sample.stored_at for sample in samples)
        self.saved, self.confirming = merge.saved(plan), merge.confirming(plan)
        self.headers, self.refusal = merge.headers, merge.refusal
        self.has_waited = pursuit.has_waited


async def looked_at(lookup: Lookup, dialect: Dialect, body: bytes, tenant: bytes) -> Known | Reason:
    """A call of such an API, all in one, for who does not answer it; or why it is not looked up."""

    def read() -> Known | Reason:
        calls = _read(dialect, body)
        return calls if isinstance(calls, Reason) else lookup.know(dialect, tenant, calls[0])

    return await asyncio.to_thread(read) if keys.is_quick(body) else Reason.TOO_LARGE


async def _at_once() -> bool:
    """What has come for one portion is confirmed together with the others."""
    return True


def _read(dialect: Dialect, body: bytes) -> Sequence[Call] | Reason:
    try:
        call = dialect.read(keys.parse(body))
    except Refused as refused:
        return refused.reason
    if call.size > MAX_ROWS:
        return Reason.TOO_LARGE
    if len(call.items) <= PORTION:
        return (call,)
    by_portions = portioned(dialect)
    assert by_portions
    return (call, *by_portions.portions(call, PORTION))
