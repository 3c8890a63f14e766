"""Who is under way, by the ids that clients gave, and what becomes of them when one is aborted.

A fetch that nobody else wants is upstream's to abort, under the id that it knows. One that goes on
for others is left alone: only the client that is meant is answered. Knows asyncio, and neither
mitmproxy nor what an answer looks like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sglang_cached_addon.service.asking import Ask


class Aborts:
    """The calls that can be aborted."""

    def __init__(self) -> None:
        self._named: dict[str, set[Ask]] = {}
        """By the ids that clients gave them."""
        self._attended: set[Ask] = set()
        """That wait for an answer, or read one."""

    def __len__(self) -> int:
        return len(self._attended)

    @contextmanager
    def attend(self, ask: Ask, rids: Sequence[str]) -> Iterator[None]:
        """While a call is under way."""
        self._attended.add(ask)
        for rid in rids:
            self._named.setdefault(rid, set()).add(ask)
        try:
            yield
        finally:
            self._attended.discard(ask)
            for rid in rids:
                self._named[rid].discard(ask)
                if not self._named[rid]:
                    del self._named[rid]

    def is_known(self, rid: str) -> bool:
        """Whether a call under way has this id."""
        return rid in self._named

    def _meant(self, rid: str) -> dict[str, set[Ask]]:
        """The calls that an abort of this id means, by their own: SGLang's scheduler ends all whose
        id begins with that of one that it knows."""
        if rid not in self._named:
            return {}
        return {name: asks for name, asks in self._named.items() if name.startswith(rid)}

    def targets(self, rid: str) -> list[str]:
        """What upstream is to abort where a client says this id: fetches that nobody else wants."""
        return [
            ask.rids[name]
            for name, asks in self._meant(rid).items()
            for ask in asks
            if ask.flight and ask.flight.clients == 1 and ask.rids and name in ask.rids
        ]

    def aborting(self, rid: str | None) -> Callable[[bool], None]:
        """An abort of the calls of this id, or of all, is on its way to upstream. What is returned
        is to be told whether upstream agrees: it ends those calls that wait for a fetch which goes
        on for others. Of a batch, one item cannot be ended so."""
        meant = self._attended if rid is None else set().union(*self._meant(rid).values())
        leads = {ask: ask.flight for ask in meant}
        pending = asyncio.get_running_loop().create_future()
        for ask in leads:
            ask.abort = pending

        def ended(is_agreed: bool) -> None:
            for ask, flight in leads.items():
                if ask.abort is pending:
                    ask.abort = None
                if not is_agreed:
                    continue
                # Upstream's own answer is on its way, or was given.
                is_own = flight is not None and ask.flight is flight and flight.clients == 1
                is_item = rid is not None and ask.rids is not None and len(ask.rids) > 1
                if not (is_own or ask.is_aborted or is_item):
                    _abort(ask)
            if not pending.done():
                pending.set_result(None)

        return ended


def _abort(ask: Ask) -> None:
    if ask.task:
        ask.is_aborted = True
        ask.task.cancel()
    elif ask.stream:
        ask.is_aborted = True
        ask.stream.tell()
