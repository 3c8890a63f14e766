"""Fetches under way, and who waits for them (collapsed requests, RFC 9111 §4).

A `Flight` is one call to upstream that fills some pools. Who needs a pool that is being filled
waits in `Flights`; when the flight has landed, those who need most go first, so that of all who
wait one goes upstream, for all of them. What a flight has brought is at hand from then on, until
it is stored or is known not to be. Knows asyncio, and neither mitmproxy nor what is brought.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.service.flight import Flight


class Drawer(Protocol):
    """A call of a run, which draws samples from pools."""

    def draw(self) -> None:
        """Takes what it lacks of what is at hand."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A call that waits for any of some pools."""

    needs: Mapping[bytes, int]
    drawer: Drawer | None
    woken: asyncio.Future[Flight]


class Flights:
    """The flights under way."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()
        self._by_key: dict[bytes, Flight] = {}
        """The flights that others may wait for, by the keys of their pools."""
        self._by_identity: dict[Hashable, Flight] = {}
        """The flights that others may wait for, by what their answers have in common."""
        self._landed: dict[bytes, list[Flight]] = {}
        """Those that have landed and are not yet stored, by key, in the order of their landing."""
        self._waiters: dict[bytes, list[_Waiter]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """How many calls wait for the flights of others, or read their streams along."""
        return sum(max(0, flight.clients - 1) for flight in self._flights)

    @property
    def streams(self) -> int:
        """How many streams are being fetched."""
        return sum(bool(flight.stream and flight.stream.is_live) for flight in self._flights)

    def shown(self) -> list[dict[str, Any]]:
        """What people are told of those under way, the oldest first."""
        flights = [(flight.errand, flight) for flight in self._flights if flight.errand]
        return [
            {
                **asdict(errand),
                "run": errand.run or None,
                "clients": flight.clients,
                "is_stream": flight.stream is not None,
                "has_landed": not flight.is_flying,
            }
            for errand, flight in sorted(flights, key=lambda pair: pair[0].since)
        ]

    @property
    def any_landed(self) -> bool:
        """Whether something is on its way to the store."""
        return bool(self._landed)

    def busy(self, keys: Collection[bytes]) -> dict[bytes, Flight]:
        """What fills those of the pools that are being filled, by their keys."""
        by_key = self._by_key
        return {key: by_key[key] for key in keys if key in by_key} if by_key else {}

    @property
    def unconfirmed(self) -> int:
        """How many flights have landed, and are not yet stored or dropped."""
        return sum(not flight.is_flying for flight in self._flights)

    def landed(self, keys: Collection[bytes]) -> list[Flight]:
        """The flights that have brought something for these pools, and are not yet stored."""
        found = (flight for key in keys for flight in self._landed.get(key, ()))
        return list(dict.fromkeys(found))

    def brought(self, key: bytes, stamp: Hashable, *, is_first: bool) -> Sequence[Sample]:
        """What has been brought for a pool, counts, and comes behind what is stored there. What
        replaces that does not, unless it `is_first`: there is nothing."""
        found: Sequence[Sample] = ()
        for flight in self._landed.get(key, ()):
            if flight.stamp == stamp and (flight.is_addition or is_first):
                found = [*found, *flight.unstored[key]] if found else flight.unstored[key]
        return found

    def find(self, identity: Hashable) -> Flight | None:
        """A streamed flight of this identity, if it can be followed."""
        flight = self._by_identity.get(identity)
        stream = flight.stream if flight else None
        return flight if stream and stream.is_live and stream.is_whole else None

    def begin(self, flight: Flight, *, alone: bool) -> None:
        """A flight begins. `alone`: nobody is to wait for it."""
        self._flights.add(flight)
        if not alone:
            self._by_key |= dict.fromkeys(flight.keys, flight)
            if flight.identity is not None:
                self._by_identity[flight.identity] = flight

    def land(
        self,
        flight: Flight,
        brings: Mapping[bytes, Sequence[Sample]],
        first: Callable[[], object] = lambda: None,
    ) -> None:
        """Upstream has answered in full: what the flight brings is at hand, and nobody waits any
        more. `first` is called before any other call draws from that."""
        if not flight.is_flying:
            return
        flight.is_flying, flight.brings, flight.unstored = False, brings, dict(brings)
        for key in brings:
            self._landed.setdefault(key, []).append(flight)
        first()
        self._let_go(flight)

    async def turn(self, flight: Flight) -> Reason | None:
        """Waits for those that have landed before it in the same pools, so that what is stored has
        the order in which it was at hand. Where one of them is not stored, neither is what came
        behind it: why."""
        earlier = [
            before
            for key in flight.brings
            for before in self._landed[key][: self._landed[key].index(flight)]
        ]
        if tasks := {before.task for before in earlier if before.task}:
            await asyncio.wait(tasks)
        return next((before.dropped for before in earlier if before.dropped), None)

    def end(self, flight: Flight) -> None:
        """A flight is over, whatever it has brought."""
        self._flights.discard(flight)
        if flight.is_flying:
            self._let_go(flight)
        for key in tuple(flight.unstored):
            self._settle(flight, key)
        flight.is_flying = False

    def stored(self, flight: Flight, addition: Addition) -> None:
        """Some of what it has brought for a pool is in the store."""
        flight.unstored[addition.key] = flight.unstored[addition.key][len(addition.samples) :]
        if addition.is_last:
            self._settle(flight, addition.key)

    def _settle(self, flight: Flight, key: bytes) -> None:
        """What it has brought for a pool is stored, or will not be."""
        del flight.unstored[key]
        landed = self._landed[key]
        landed.remove(flight)
        if not landed:
            del self._landed[key]

    def _let_go(self, flight: Flight) -> None:
        """Nobody waits for it from now on, or begins to follow it."""
        if self._by_identity.get(flight.identity) is flight:
            del self._by_identity[flight.identity]
        for key in flight.keys:
            if self._by_key.get(key) is flight:
                del self._by_key[key]
                self._wake(key, flight)

    def drawers(self, keys: Collection[bytes]) -> list[Drawer]:
        """The calls of runs that wait for any of these pools, in the order in which they came."""
        waiters = dict.fromkeys(waiter for key in keys for waiter in self._waiters.get(key, ()))
        return [waiter.drawer for waiter in waiters if waiter.drawer]

    def _wake(self, key: bytes, flight: Flight) -> None:
        for waiter in self._waiters.get(key, ()):
            if waiter.drawer and not waiter.woken.done():
                waiter.drawer.draw()
        # Resumed in this order. The first that still lacks something leads, and has what all the
        # others need; stable, so that among equals who came first goes first.
        for waiter in sorted(self._waiters.pop(key, []), key=lambda w: -w.needs[key]):
            if not waiter.woken.done():
                waiter.woken.set_result(flight)

    @contextmanager
    def wanted(self, flight: Flight) -> Iterator[None]:
        """Counts a client as long as it wants a flight. When nobody does any more, the flight ends:
        upstream generates nothing for nobody."""
        flight.clients += 1
        try:
            yield
        finally:
            flight.clients -= 1
            if not flight.clients and flight.is_flying and flight.task:
                self._let_go(flight)  # nobody is to begin to want what is about to end
                flight.task.cancel()

    async def wait(self, needs: Mapping[bytes, int], drawer: Drawer | None = None) -> Flight:
        """Waits until something has become of any of these pools; the flight that it was. `needs`
        are the sizes that they are to have; for each, a flight is under way. A call of a run is
        there as a `drawer`: before any of those who wait goes on, each draws in its turn."""
        waiter = _Waiter(needs, drawer, asyncio.get_running_loop().create_future())
        for key in needs:
            self._waiters.setdefault(key, []).append(waiter)
        try:
            with ExitStack() as wants:
                for flight in {self._by_key[key] for key in needs if key in self._by_key}:
                    wants.enter_context(self.wanted(flight))
                return await waiter.woken
        finally:
            for key in needs:
                if waiter in (waiters := self._waiters.get(key, [])):
                    waiters.remove(waiter)
                    if not waiters:
                        del self._waiters[key]
