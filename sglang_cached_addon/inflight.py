"""Fetches under way, and who waits for them (collapsed requests, RFC 9111 §4).

A `Flight` is one call to upstream that fills some pools. Who needs a pool that is being filled
waits in `Flights`; when the flight is over, those who need most go first, so that of all who
wait one goes upstream, for all of them. A `Stream` is the events of a flight as they come, for
any number of followers. Knows asyncio, and neither mitmproxy nor what events say.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Hashable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, contextmanager
from enum import Enum
from weakref import WeakSet

from sglang_cached_addon.dialects.base import Part
from sglang_cached_addon.policy import Reason
from sglang_cached_addon.relay import Event


class State(Enum):
    """How far a stream is."""

    WAITING = "upstream has not answered yet"
    OPEN = "events come"
    COMPLETE = "the last event came"
    FAILED = "there will be no more"


class Cut(Exception):
    """A stream that was followed has broken off."""


BACKLOG = 64
"""Superseded events that are kept for a reader who is behind."""


class Stream:
    """The events of one fetch."""

    def __init__(self) -> None:
        self.state = State.WAITING
        self.tokens = 0
        """Completion tokens of the whole answer, once it is complete."""
        self.stored: Collection[int] = ()
        """The choices that were there before, and are told first."""
        self.events: list[Event | None] = []
        """None where a later event has all of it."""
        self._states: dict[int, int] = {}
        """Where the newest of these is, by choice."""
        self._superseded: deque[int] = deque()
        """Where others are, which somebody may still want to see."""
        self._readers: WeakSet[Reader] = WeakSet()
        self._news: asyncio.Future[None] | None = None

    @property
    def is_live(self) -> bool:
        """Whether there may be more to come."""
        return self.state in (State.WAITING, State.OPEN)

    # Who fetches. Nothing here waits for a reader.

    def open(self) -> None:
        """Upstream answers with a stream."""
        self.state = State.OPEN
        self.tell()

    def publish(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.part is Part.STATE:
                if (place := self._states.get(event.choice)) is not None:
                    self._superseded.append(place)
                self._states[event.choice] = len(self.events)
            self.events.append(event)
        self._drop()
        self.tell()

    def end(self, *, complete: bool) -> None:
        """The last word; what comes after the first such is not heard."""
        if self.is_live:
            self.state = State.COMPLETE if complete else State.FAILED
            self.tell()

    def _drop(self) -> None:
        """Lets go of what is superseded and has been seen, or of the oldest of too much of it."""
        seen = min((reader.place for reader in self._readers), default=0)
        while self._superseded and (self._superseded[0] < seen or len(self._superseded) > BACKLOG):
            self.events[self._superseded.popleft()] = None

    # Who follows.

    def reader(self) -> Reader:
        """One more who is to see the events: those that there are, and from now on each."""
        self._drop()
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    async def opened(self) -> bool:
        """Whether there is something to read, once that is known."""
        while self.state is State.WAITING:
            await self.changed()
        return self.state is not State.FAILED or bool(self.events)

    async def changed(self) -> None:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        # Shared by all who wait, so that one who is cancelled must not end it.
        await asyncio.shield(self._news)

    def tell(self) -> None:
        """Lets all who wait look again."""
        if self._news:
            self._news.set_result(None)
            self._news = None


class Reader:
    """One who sees the events of a stream."""

    def __init__(self, stream: Stream) -> None:
        self.place = 0
        """Of the next event to be seen."""
        self._stream = stream

    async def read(self, is_over: Callable[[], bool] = bool) -> AsyncIterator[list[Event]]:
        """The events as they come, until `is_over`. Raises `Cut`."""
        stream = self._stream
        while not is_over():
            news = [event for event in stream.events[self.place :] if event is not None]
            self.place = len(stream.events)
            if news:
                yield news
            elif stream.is_live:
                await stream.changed()
            elif stream.state is State.FAILED:
                raise Cut
            else:
                return


class Flight:
    """One call to upstream."""

    def __init__(self, keys: Collection[bytes], identity: Hashable = None) -> None:
        """`keys` name the pools that it fills; calls of one `identity` have one answer."""
        self.keys = keys
        self.identity = identity
        self.stream: Stream | None = None
        """Of a streamed one."""
        self.task: asyncio.Task[None] | None = None
        self.replaces = False
        """What it brings takes the place of what is stored."""
        self.is_answered = False
        """What it brings is known, and on its way to the store."""
        self.refusal: Reason | None = None
        """Why what it brings is not stored, as far as it is known."""
        self.clients = 0
        """Those who want what it brings."""

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """While somebody wants it. When nobody does any more, it ends: upstream generates nothing
        for nobody."""
        self.clients += 1
        try:
            yield
        finally:
            self.clients -= 1
            if not self.clients and not self.is_answered and self.task:
                self.task.cancel()


class _Waiter:
    """One who waits for any of some pools."""

    def __init__(self, needs: Mapping[bytes, int]) -> None:
        self.needs = needs
        self.woken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Flights:
    """The flights under way."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()
        self._by_key: dict[bytes, Flight] = {}
        self._by_identity: dict[Hashable, Flight] = {}
        self._settling: Counter[bytes] = Counter()
        """Flights that are answered, by the pools that they fill."""
        self.replacing: set[Flight] = set()
        """Those of them that replace what is stored, which is out of date until they end."""
        self._waiters: dict[bytes, list[_Waiter]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights))

    @property
    def waiting(self) -> int:
        """Those who wait for others' flights, or read along."""
        return sum(max(0, flight.clients - 1) for flight in self._flights)

    @property
    def streams(self) -> int:
        """Streams that are being fetched."""
        return sum(bool(flight.stream and flight.stream.is_live) for flight in self._flights)

    def busy(self, keys: Collection[bytes]) -> set[bytes]:
        """Those of the pools that are being filled."""
        return {key for key in keys if key in self._by_key}

    def settling(self, keys: Collection[bytes]) -> set[bytes]:
        """Those of the pools for which something is on its way to the store."""
        return {key for key in keys if key in self._settling}

    def find(self, identity: Hashable) -> Flight | None:
        """A streamed flight of this identity, if it can be followed."""
        flight = self._by_identity.get(identity)
        if flight is None or flight.is_answered or not flight.stream:
            return None
        return flight if flight.stream.is_live else None

    def begin(self, flight: Flight, *, alone: bool) -> None:
        """`alone`: nobody is to wait for what upstream says."""
        self._flights.add(flight)
        if not alone:
            self._by_key |= dict.fromkeys(flight.keys, flight)
            if flight.identity is not None:
                self._by_identity[flight.identity] = flight

    def answer(self, flight: Flight) -> None:
        """What it brings is known. From here on it is as good as stored: all wait for that."""
        if not flight.is_answered:
            flight.is_answered = True
            self._settling.update(flight.keys)
            if flight.replaces:
                self.replacing.add(flight)

    def end(self, flight: Flight, *, is_lasting: bool = False) -> None:
        """It is over. `is_lasting`: what it brought can never be stored, and the next would bring
        the same, so that those who wait need not go one after the other."""
        self._flights.discard(flight)
        self.replacing.discard(flight)
        if self._by_identity.get(flight.identity) is flight:
            del self._by_identity[flight.identity]
        for key in flight.keys:
            is_led = self._by_key.get(key) is flight
            if is_led:
                del self._by_key[key]
            if flight.is_answered:
                self._settling[key] -= 1
                if not self._settling[key]:
                    del self._settling[key]
            if is_led or flight.is_answered:
                self._wake(key, is_lasting)

    def _wake(self, key: bytes, is_lasting: bool) -> None:
        # Resumed in this order. The first that still lacks something leads, and has what all the
        # others need; stable, so that among equals who came first goes first.
        for waiter in sorted(self._waiters.pop(key, []), key=lambda w: -w.needs[key]):
            if not waiter.woken.done():
                waiter.woken.set_result(is_lasting)

    async def wait(self, needs: Mapping[bytes, int]) -> bool:
        """Waits until something has become of any of these pools; whether to go on alone. `needs`
        are the sizes that they are to have; for each, a flight is under way."""
        waiter = _Waiter(needs)
        for key in needs:
            self._waiters.setdefault(key, []).append(waiter)
        try:
            with ExitStack() as wants:
                for flight in {self._by_key[key] for key in needs if key in self._by_key}:
                    wants.enter_context(flight.wanted())
                return await waiter.woken
        finally:
            for key in needs:
                if waiter in (waiters := self._waiters.get(key, [])):
                    waiters.remove(waiter)
                    if not waiters:
                        del self._waiters[key]
