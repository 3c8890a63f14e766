"""The events of one fetch as they come, for any number of readers.

Who comes late sees all from the beginning, as long as all is kept. No more than `KEPT_BYTES` are:
then what everybody has seen is let go of, and who fetches waits for the slowest reader. One who
does not move while others wait is left behind. Knows asyncio, and not what events say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from enum import Enum

from sglang_cached_addon.core.call import Part
from sglang_cached_addon.service.relay import Event

KEPT_BYTES = 4 << 20
"""How many bytes of events are kept, for readers who come late and readers who are behind."""

BATCH_BYTES = 64 << 10
"""About how many bytes a reader is given at once: the rest when it has taken that."""

PATIENCE_SECONDS = 20.0
"""For how many seconds others wait for a reader that does not move."""

BACKLOG = 64
"""How many superseded events are kept for a reader who is behind."""


class StreamState(Enum):
    """How far a stream is."""

    WAITING = "upstream has not answered yet"
    OPEN = "events come"
    COMPLETE = "the last event came"
    FAILED = "there will be no more"


class Cut(Exception):
    """A stream has broken off for one who reads it."""


class Stream:
    """The events of one fetch."""

    def __init__(self, stored: Collection[int] = ()) -> None:
        """`stored` are the choices that were there before, and are told first."""
        self.state = StreamState.WAITING
        self.tokens = 0
        """How many completion tokens the whole answer has, once it is complete."""
        self.last: int | None = None
        """The place of the terminator, once it has come: nothing that counts is behind it."""
        self.stored = frozenset(stored)
        self.events: list[Event | None] = []
        """The events by their places. None stands for one that is not kept, as a later one has all
        of it, or everybody has seen it."""
        self.kept = 0
        """How many bytes the events have that are kept."""
        self.is_whole = True
        """Whether a reader who comes now can still see all that counts."""
        self._states: dict[int, int] = {}
        """The place of each choice's newest event that has all of the choice (`Part.STATE`)."""
        self._superseded: deque[int] = deque()
        """The places of such events that are not the newest, while somebody may want them."""
        self._begin = 0
        """The first place of which an event may be kept."""
        self._readers: set[Reader] = set()
        self._waiters: dict[asyncio.Future[None], Callable[[], bool]] = {}
        """A future for each reader that waits for something new, and what may spare it that."""
        self._moved = asyncio.Event()
        """Set when a reader has gone on, or has left."""

    @property
    def is_live(self) -> bool:
        """Whether there may be more to come."""
        return self.state in (StreamState.WAITING, StreamState.OPEN)

    # Who fetches.

    def open(self) -> None:
        """Upstream answers with a stream."""
        self.state = StreamState.OPEN
        self.tell()

    def publish(self, events: Sequence[Event], *, is_last: bool = False) -> None:
        """Adds events; `is_last`: the terminator is among them."""
        for event in events:
            if event.part is Part.STATE:
                if (place := self._states.get(event.choice)) is not None:
                    self._superseded.append(place)
                self._states[event.choice] = len(self.events)
            self.events.append(event)
            self.kept += len(event.data)
        if is_last:
            self.last = len(self.events) - 1
        spared = {w: takes for w, takes in self._waiters.items() if not w.done() and takes()}
        for waiter in spared:
            del self._waiters[waiter]
        self._drop()
        self.tell()
        self._waiters = spared

    @property
    def is_full(self) -> bool:
        """More is kept than there should be."""
        return self.kept > KEPT_BYTES

    async def room(self, clients: Callable[[], int]) -> None:
        """Returns when there is room for more. `clients` are those who want the end of it, readers
        and others."""
        while self.is_full and self._readers:
            places = {reader: reader.place for reader in self._readers}
            slowest = min(places, key=lambda reader: places[reader])
            if not await self._moves(slowest):
                self._leave_behind(places, clients() - len(self._readers))
            self._drop()

    async def _moves(self, reader: Reader) -> bool:
        """Waits for a reader to go on or to leave; not for ever."""
        place = reader.place
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while reader in self._readers and reader.place == place:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _leave_behind(self, places: dict[Reader, int], others: int) -> None:
        """Those who have not moved keep nobody waiting but one another."""
        end = len(self.events)
        stuck = [r for r in self._readers if r.place < end and r.place == places.get(r)]
        if others > 0 or len(stuck) < len(self._readers):
            for reader in stuck:
                reader.close()

    def end(self, *, complete: bool) -> None:
        """The stream ends. Only the first end counts."""
        if self.is_live:
            self.state = StreamState.COMPLETE if complete else StreamState.FAILED
            self.tell()

    def _drop(self) -> None:
        """Lets go of what is superseded and has been seen, or of the oldest of too much of it, and
        of all that has been seen where too much is kept."""
        if not self._superseded and self.kept <= KEPT_BYTES:
            return
        seen = min((reader.place for reader in self._readers), default=len(self.events))
        while self._superseded and (
            self._superseded[0] < seen or len(self._superseded) > BACKLOG or self.kept > KEPT_BYTES
        ):
            self._forget(self._superseded.popleft())
        if self.kept > KEPT_BYTES:
            self.is_whole = False
            for place in range(self._begin, seen):
                self._forget(place)
            self._begin = max(self._begin, seen)

    def _forget(self, place: int) -> None:
        if event := self.events[place]:
            self.kept -= len(event.data)
            self.events[place] = None

    # Who follows.

    def reader(self) -> Reader:
        """One more who is to see the events: those that there are, and from now on each."""
        self._drop()
        reader = Reader(self)
        self._readers.add(reader)
        return reader

    async def opened(self) -> bool:
        """Whether there is something to read, once that is known."""
        while self.state is StreamState.WAITING:
            await self.changed()
        return self.state is not StreamState.FAILED or bool(self.events)

    async def changed(self, takes: Callable[[], bool] = bool) -> None:
        """Returns when there is something new: more events, unless `takes` has taken them, or
        another state."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = takes
        await waiter

    def tell(self) -> None:
        """Lets all who wait look again."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():  # it may have been cancelled
                waiter.set_result(None)


class Reader:
    """One client that reads a stream."""

    def __init__(self, stream: Stream) -> None:
        self.place = 0
        """The place of the next event that it is given."""
        self._stream = stream

    @property
    def has_all(self) -> bool:
        """Whether it has been given all that counts."""
        last = self._stream.last
        return last is not None and self.place > last

    @property
    def is_level(self) -> bool:
        """Whether it has been given all that there is."""
        return self.place >= len(self._stream.events)

    async def read(
        self, is_over: Callable[[], bool] = bool, takes: Callable[[], bool] = bool
    ) -> AsyncIterator[list[Event]]:
        """The events as they come, until `is_over`. Those that come while this waits are not given
        if `takes` has taken them. Raises `Cut`."""
        stream = self._stream
        while not is_over():
            if self not in stream._readers:
                raise Cut
            if news := self.take():
                yield news
            elif stream.is_live:
                await stream.changed(takes)
            elif stream.state is StreamState.FAILED:
                raise Cut
            else:
                return

    def close(self) -> None:
        """It reads no more, and nothing is kept for it."""
        self._stream._readers.discard(self)
        self._stream._moved.set()

    def take(self) -> list[Event]:
        """What is next, not too much of it."""
        news, size, events = [], 0, self._stream.events
        while self.place < len(events) and size < BATCH_BYTES:
            if event := events[self.place]:
                news.append(event)
                size += len(event.data)
            self.place += 1
        self._stream._moved.set()
        return news
