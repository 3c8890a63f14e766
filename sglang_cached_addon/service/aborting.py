"""The calls under way, by the request ids (`rid`) of their clients, and what an abort does to them.

A fetch that nobody else wants is aborted by upstream, under the id that upstream knows. A fetch
that others want, too, goes on: only the client that is meant gets its answer at once. What is
fetched while an abort is on its way may have been cut off by it. This module knows asyncio, and
neither mitmproxy nor what an answer looks like.
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
        """The calls by the ids that their clients gave them."""
        self._attended: set[Ask] = set()
        """All calls that wait for an answer, or whose client reads one."""
        self._passing = 0
        """How many requests are on their way to upstream that may end calls there."""
        self._passed = 0
        """How many have begun to be, so far."""

    def __len__(self) -> int:
        return len(self._attended)

    @contextmanager
    def attend(self, ask: Ask, rids: Sequence[str]) -> Iterator[None]:
        """Lets the call be found by these ids of its client, while it is under way."""
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

    def passing(self) -> Callable[[], None]:
        """Notes that a request is on its way to upstream that may end any calls there. The function
        that is returned has to be called when it is over."""
        self._passing += 1
        self._passed += 1

        def ended() -> None:
            self._passing -= 1

        return ended

    def watch(self) -> Callable[[], bool]:
        """A function that tells whether none was on its way from now on."""
        before = None if self._passing else self._passed
        return lambda: before == self._passed

    def is_known(self, rid: str) -> bool:
        """Whether a call under way has this id."""
        return rid in self._named

    def _meant(self, rid: str) -> dict[str, set[Ask]]:
        """The calls that an abort of this id ends, by their own ids: SGLang's scheduler ends all
        whose id begins with it, if there is one with exactly this id."""
        if rid not in self._named:
            return {}
        return {name: asks for name, asks in self._named.items() if name.startswith(rid)}

    def targets(self, rid: str) -> list[str]:
        """Upstream's ids of what an abort of this id ends there: fetches that nobody else wants."""
        return [
            ask.rids[name]
            for name, asks in self._meant(rid).items()
            for ask in asks
            if ask.flight and ask.flight.clients == 1 and ask.rids and name in ask.rids
        ]

    def aborting(self, rid: str | None) -> Callable[[bool], None]:
        """Notes that an abort of the calls of this id, or of all calls (None), is on its way to
        upstream. The function that is returned has to be told whether upstream agrees: it ends
        those calls that wait for a fetch which goes on for others. One item of a batch cannot be
        ended so."""
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
