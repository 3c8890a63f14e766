"""What a client gets that wants no upstream to be asked, for what is not stored: a 504."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason, Terms
from sglang_cached_addon.service.asking import Ask, Reply
from sglang_cached_addon.service.claims import Claim
from sglang_cached_addon.service.error_bodies import error_body
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import JSON, Bypass, Known

Nearest = Callable[[Known, bool], Awaitable[str]]
"""Says in a sentence which stored call is nearest to one; with its values only if it is told so."""

_TEXTS = {
    Reason.ONLY_IF_CACHED: "not stored, and the request says only-if-cached.",
    Reason.OFFLINE: "not stored, and sglang-cached runs with --mode offline.",
}

_SHOWN = 10
"""So many prompts of a list are named."""


class Denials:
    """Answers in upstream's place."""

    def __init__(self, exchange: Exchange, nearest: Nearest | None) -> None:
        self._exchange = exchange
        self._nearest = nearest

    async def deny(self, ask: Ask, known: Known, terms: Terms) -> Reply:
        """The answer to a call that is not all stored."""
        assert terms.denial
        outcome = Outcome(Kind.DENIED, 0, known.call.total, terms.denial, 504, key=known.key)
        text = _TEXTS[terms.denial] + self._which(known)
        if isinstance(ask.claim, Claim):
            lacking = sum(ask.claim.lacks().values())
            run = ask.head.run
            text = f"{text} Fewer samples are stored than run {run} asks for: it lacks {lacking}."
        elif self._nearest and terms.denial is Reason.OFFLINE:
            text = f"{text} {await self._nearest(known, ask.is_local)}"
        return self._reply(text, outcome)

    def _which(self, known: Known) -> str:
        """Which prompts of a list are not stored, in words; empty where that is all there is."""
        size, call = self._exchange.lookup.size, known.call
        short = [k for k, key in enumerate(known.keys) if size(key) < call.n]
        if not short or len(short) == len(known.keys):
            return ""
        if call.is_part:
            return f" Of {len(known.keys)} of its inputs, {len(short)} are not."
        indices = [call.rows.index(item) if call.rows else item for item in short[:_SHOWN]]
        shown = ", ".join(map(str, indices)) + ", ..." * (len(short) > _SHOWN)
        return f" Of its {len(known.keys)} inputs, {len(short)} are not: those at index {shown}."

    def let_pass(self, reason: Reason, terms: Terms) -> Bypass | Reply:
        """What is not looked up is passed on, unless upstream is not to be asked."""
        if not terms.denial:
            return self._exchange.bypass(reason)
        outcome = Outcome(Kind.DENIED, reason=terms.denial, status=504)
        return self._reply(f"{_TEXTS[terms.denial]} It is not looked up: {reason}.", outcome)

    def _reply(self, text: str, outcome: Outcome) -> Reply:
        self._exchange.counters.add(outcome)
        body = error_body(504, "GatewayTimeout", f"sglang-cached: {text}")
        return Reply(504, JSON, body, outcome)
