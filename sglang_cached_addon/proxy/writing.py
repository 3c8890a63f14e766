"""Writes the answers of the fast lane, at the pace at which their client takes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from sglang_cached_addon.proxy import answering
from sglang_cached_addon.service.asking import Reply, Streamed
from sglang_cached_addon.service.exchange import Hit
from sglang_cached_addon.wire import http1

LARGE = 1 << 20
"""Bytes of a body that is not written in one go: to copy it would hold up others."""

_SLICE = 64 << 10
"""Bytes that are written at once of a large body."""


class Writer:
    """Writes to one client's transport."""

    def __init__(self, transport: asyncio.Transport, is_alive: Callable[[], object]) -> None:
        """`is_alive` is called whenever the client has taken something."""
        self.is_full = False
        """The client does not read as fast as it is answered."""
        self._transport = transport
        self._is_alive = is_alive
        self._room: asyncio.Future[None] | None = None
        """Done when it is not full any more; None while nobody waits for that."""

    def pause(self) -> None:
        self.is_full = True

    def resume(self) -> None:
        self.is_full = False
        if self._room and not self._room.done():
            self._room.set_result(None)

    async def answer(self, answer: Hit | Reply | Streamed, upstream: str, rate: float) -> None:
        """Writes an answer; raises `Cut` where a stream breaks off. Stored streams are paced at a
        `rate` in tokens a second; 0: at once."""
        if isinstance(answer, Streamed):
            await self._write_events(answer, answer.pieces, upstream)
        elif isinstance(answer, Hit) and answer.is_stream:
            events = http1.unchunked(answer.body)
            await self._write_events(answer, paced(events, answer.seconds(rate)), upstream)
        else:
            status = answer.status if isinstance(answer, Reply) else 200
            fields = answering.fields_of(answer, upstream, len(answer.body))
            await self._write(answering.head(status, fields), answer.body)

    async def _write(self, head: bytes, body: bytes) -> None:
        if len(body) <= LARGE:
            self._transport.write(head + body)
            return
        self._transport.write(head)
        view = memoryview(body)
        for at in range(0, len(body), _SLICE):
            await self._has_room()
            self._transport.write(view[at : at + _SLICE])
            if at % LARGE == 0:
                await asyncio.sleep(0)  # others have their turn

    async def _write_events(
        self, answer: Hit | Streamed, pieces: AsyncIterator[list[bytes]], upstream: str
    ) -> None:
        """Each event in a chunk of its own."""
        fields = answering.fields_of(answer, upstream, None)
        self._transport.write(answering.head(200, fields))
        async with aclosing(pieces) as each:  # type: ignore[type-var]
            async for events in each:
                if events:
                    self._transport.write(http1.chunks(events))
                    await self._has_room()
        self._transport.write(http1.LAST_CHUNK)

    async def _has_room(self) -> None:
        """Waits until the client has taken most of what it was sent."""
        self._is_alive()
        while self.is_full and not self._transport.is_closing():
            self._room = asyncio.get_running_loop().create_future()
            await self._room


async def paced(events: list[bytes], seconds: float) -> AsyncIterator[list[bytes]]:
    """The events, evenly over a time."""
    if not seconds:
        yield events
        return
    began = time.monotonic()
    for k, event in enumerate(events, 1):
        yield [event]
        due = began + seconds * k / len(events)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
