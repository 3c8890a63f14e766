"""Calls for long lists that generate nothing: read beside the event loop, answered in portions.

Each portion is looked up, and what is short of it fetched, as a call of its own; all of them are
put together to one answer, of one model. So the work between two turns of the loop does not grow
with the list. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason, Refused, Terms
from sglang_cached_addon.dialects.base import Dialect, portioned
from sglang_cached_addon.service.asking import Answer, Ask
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import Known, model_of
from sglang_cached_addon.service.lookup import Lookup
from sglang_cached_addon.service.merging import Merge
from sglang_cached_addon.service.pursuit import Pursuit

PORTION = 1024
"""So many inputs are looked up in one go, in 10 to 20 ms, and asked for in one call."""

MAX_ROWS = 200_000
"""How many inputs a list may have that is looked up."""

SHORT = 2 << 10
"""A body of so many bytes has not more inputs than a portion."""

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
        merge = Merge(self._means, whole)
        stored: list[tuple[Sample, ...]] = []
        has_waited = False
        for portion in portions:
            if not self._lookup.is_present(whole):
                return None
            known = self._lookup.know(dialect, tenant, portion)
            pursuit = Pursuit(self._means, ask, known, terms, is_alone=is_alone, merge=merge)
            found = await pursuit.gather(_at_once)
            if not isinstance(found, Plan):
                return found
            whole.keys += known.keys
            stored += found.stored
            has_waited |= pursuit.has_waited
            await asyncio.sleep(0)  # others have their turn
        plan = Plan(call, whole.keys, tuple(stored))
        await merge.is_confirmed(plan)
        if not self._lookup.is_present(whole):
            return None
        return await merge.answer(plan, is_collapsed=has_waited)


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
