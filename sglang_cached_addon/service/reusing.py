"""What a greedy call takes of what is stored for others of its family, on its way to an answer.

Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf

from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Terms
from sglang_cached_addon.service.asking import Ask, Reply
from sglang_cached_addon.service.fetching import Means
from sglang_cached_addon.service.findings import Hit, Known


class Reusing:
    """One call, which looks once."""

    def __init__(self, means: Means, ask: Ask, known: Known, terms: Terms) -> None:
        self._means = means
        self._ask = ask
        self._known = known
        self._terms = terms
        self._is_open = known.call.is_greedy and terms.since == -inf
        """It has not looked, and takes what is stored, however old that is."""
        self._detail = ""

    @property
    def is_due(self) -> bool:
        """Whether there may be something."""
        return self._is_open and self._means.exchange.families.variant(self._known) is not None

    async def look(self, plan: Plan) -> Plan:
        """The plan with what answers the call of what is stored for others."""
        self._is_open = False
        spell = None if self._terms.denial else partial(self._means.spelling.texts, self._ask)
        is_stored = self._terms.refusal is None
        found = await self._means.exchange.families.reuse(
            self._known, plan, spell, is_stored=is_stored
        )
        if tokens := max((one.tokens for one in found if one.is_cut), default=0):
            self._detail = f"cut from {tokens} tokens"
        return plan.with_samples((one.item, one.sample) for one in found)

    def told(self, answer: Hit | Reply | None) -> Hit | Reply | None:
        """The answer, which says so if it was cut."""
        if not (answer and self._detail):
            return answer
        detail = ", ".join(filter(None, [self._detail, answer.outcome.detail]))
        return replace(answer, outcome=replace(answer.outcome, detail=detail))
