"""How several equal calls of a run are one call to upstream.

Upstream is asked with `n`; where it refuses that, as SGLang's Rust server does, with a list of
equal prompts, if the API has one; and else each call goes alone. What a server does not understand
is remembered for as long as it is the same. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sglang_cached_addon.core.call import Mint, UpstreamCall
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import generating
from sglang_cached_addon.service.findings import Known, Landed, Manner

_OF_N = re.compile(rb"(?<![\\\w])n(?!\w)")
"""What an error says that speaks of `n`."""


_NEXT = {Manner.N: Manner.LIST, Manner.LIST: Manner.ALONE}


class Sharing:
    """What the server understands, by the names of dialects."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._manners: dict[str, Manner] = {}

    def manner(self, server: Server, dialect: str) -> Manner:
        """How calls of this API are shared by now."""
        if server != self._server:
            self._server, self._manners = server, {}
        return self._manners.get(dialect, Manner.N)

    def shared(
        self,
        known: Known,
        plan: Plan,
        shortfalls: Sequence[int],
        others: Mapping[bytes, int],
        mint: Mint,
        server: Server,
    ) -> tuple[Known, Plan, UpstreamCall, Manner] | None:
        """The call that brings what is short of each prompt, and what `others` lack of its pools;
        None where there is none that is the same but for the number of samples."""
        manner = self.manner(server, known.dialect.name)
        if manner is Manner.N:
            sent = _with_others(known, plan, shortfalls, others, mint, server)
            return (known, plan, sent, manner) if sent else None
        if manner is Manner.LIST and (listed := _as_list(known, plan, others)):
            known, plan = listed
            sent = known.dialect.trim(known.call, plan.shortfalls, mint, server)
            return known, plan, sent, manner
        return None

    def learn(self, server: Server, dialect: str, manner: Manner, landed: Landed) -> bool:
        """Takes note of what upstream has answered to a shared call; whether it has not understood
        that, so that those who share it are to try in another manner."""
        if manner is Manner.ALONE:
            return False
        is_refused = landed.status in (400, 422) and bool(_OF_N.search(landed.body))
        is_odd = landed.status == 200 and landed.refusal in (Reason.UNREADABLE, Reason.SHARED_USAGE)
        if not (is_refused or is_odd):
            return False
        if self.manner(server, dialect) is manner:
            self._manners[dialect] = _NEXT[manner]
        return True


def _with_others(
    known: Known,
    plan: Plan,
    shortfalls: Sequence[int],
    others: Mapping[bytes, int],
    mint: Mint,
    server: Server,
) -> UpstreamCall | None:
    """The call for what is short, and for what `others` lack of its pools; None where that would
    not be the same call but for the number of samples."""
    more = dict(others)
    wanted = [
        short + more.pop(key, 0) if short else 0
        for key, short in zip(plan.keys, shortfalls, strict=True)
    ]
    sent = known.dialect.trim(known.call, wanted, mint, server)
    # What the proxy asks for besides is not part of the key.
    own = (*known.call.body, "n", "sampling_params")
    try:
        call = known.dialect.read({name: sent.body[name] for name in own if name in sent.body})
    except Refused:
        return None
    is_same = set(call.items) == {known.call.items[item] for item in sent.order}
    return sent if is_same else None


def _as_list(known: Known, plan: Plan, others: Mapping[bytes, int]) -> tuple[Known, Plan] | None:
    """The same as a call for a list of equal prompts, each once; None where there is no such."""
    call, (key, *more) = known.call, known.keys
    count = sum(plan.shortfalls) + others.get(key, 0)
    body = None if more else generating(known.dialect).repeated(call.body, count)
    if body is None:
        return None
    try:
        listed = known.dialect.read(body)
    except Refused:
        return None
    if listed.items != call.items * count or listed.n != 1:
        return None
    keys = (key,) * count
    places: tuple[Sequence[int], ...] = ((),) * count
    return (
        Known(
            known.dialect,
            listed,
            keys,
            known.model,
            known.model_version,
            left_out=known.left_out * count,
        ),
        Plan(listed, keys, ((),) * count, places),
    )
