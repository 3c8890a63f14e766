"""Streams under way, and who reads them: leaders and followers (collapsed requests, RFC 9111 §4).

The leader's request fetches; followers, whose calls are the same, read what came so far and
then each event as it comes. Knows asyncio, and neither mitmproxy nor what events say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from enum import Enum

from sglang_cached_addon.dialects.base import Part
from sglang_cached_addon.relay import Event


class State(Enum):
    """How far a fetch is."""

    WAITING = "upstream has not answered yet"
    OPEN = "events come"
    COMPLETE = "the last event came"
    FAILED = "there will be no more"


class Cut(Exception):
    """A stream that was followed has broken off."""


class Stream:
    """The events of one fetch."""

    def __init__(self) -> None:
        self.state = State.WAITING
        self.followers = 0
        self.tokens = 0
        """Completion tokens of the whole answer, once it is complete."""
        self._events: list[Event | None] = []
        """None where a later event has all of it."""
        self._states: dict[int, int] = {}
        """Where the newest of these is, by choice."""
        self._news: asyncio.Future[None] | None = None

    @property
    def is_live(self) -> bool:
        """Whether there may be more to come."""
        return self.state in (State.WAITING, State.OPEN)

    # The leader's side. Nothing here waits for a follower.

    def open(self) -> None:
        """Upstream answers with a stream."""
        self.state = State.OPEN
        self.tell()

    def publish(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.part is Part.STATE:
                if (place := self._states.get(event.choice)) is not None:
                    self._events[place] = None
                self._states[event.choice] = len(self._events)
            self._events.append(event)
        self.tell()

    def end(self, *, complete: bool) -> None:
        """The last word; what comes after the first such is not heard."""
        if self.is_live:
            self.state = State.COMPLETE if complete else State.FAILED
            self.tell()

    async def unattended(self) -> None:
        """Returns when nobody needs the fetch any more: it is over, or has no followers."""
        while self.is_live and self.followers:
            await self.changed()

    # What followers use.

    @property
    def has_begun(self) -> bool:
        return bool(self._events)

    def since(self, place: int) -> tuple[int, list[Event]]:
        """The events from a place on, and the place of the next one."""
        news = [event for event in self._events[place:] if event is not None]
        return len(self._events), news

    async def changed(self) -> None:
        """Waits for a change of any kind."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        # Shared by all who wait, so that one who is cancelled must not end it.
        await asyncio.shield(self._news)

    def tell(self) -> None:
        """Wakes all who wait for a change."""
        if self._news:
            self._news.set_result(None)
            self._news = None


class Follower:
    """One who reads a stream that another leads."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._has_left = False
        stream.followers += 1

    @property
    def tokens(self) -> int:
        """As `Stream.tokens`."""
        return self._stream.tokens

    def leave(self) -> None:
        """Is no longer interested; may be called twice."""
        if not self._has_left:
            self._has_left = True
            self._stream.followers -= 1
            self._stream.tell()

    async def opened(self) -> bool:
        """Whether there is something to read, once that is known."""
        while self._stream.state is State.WAITING and not self._has_left:
            await self._stream.changed()
        return self._stream.state in (State.OPEN, State.COMPLETE) or self._stream.has_begun

    async def read(self) -> AsyncIterator[list[Event]]:
        """All events: those that there are, then the others as they come. Raises `Cut`."""
        place = 0
        while True:
            place, news = self._stream.since(place)
            if news:
                yield news
            elif self._stream.is_live:
                await self._stream.changed()
            elif self._stream.state is State.FAILED:
                raise Cut
            else:
                return


class Streams:
    """The streams under way, by what they answer."""

    def __init__(self) -> None:
        self._streams: dict[Hashable, Stream] = {}

    def find(self, identity: Hashable) -> Stream | None:
        return self._streams.get(identity)

    def lead(self, identity: Hashable) -> Stream:
        """Begins one; another of the same identity goes on, but is not found any more."""
        stream = self._streams[identity] = Stream()
        return stream

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def followers(self) -> int:
        """Of all streams."""
        return sum(stream.followers for stream in self._streams.values())

    def drop(self, identity: Hashable, stream: Stream) -> None:
        if self._streams.get(identity) is stream:
            del self._streams[identity]
