"""Writes the answers of the fast lane, at the pace at which their client takes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from sglang_cached_addon.core.log_line import Ended
from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.proxy import answering
from sglang_cached_addon.proxy.delivery import Delivery
from sglang_cached_addon.proxy.desk import PASSED_ON, Desk
from sglang_cached_addon.service.asking import Answer, Ask, Reply, Streamed
from sglang_cached_addon.service.findings import Bypass, Hit
from sglang_cached_addon.service.stream import Cut
from sglang_cached_addon.wire import http1

logger = logging.getLogger("sglang_cached_addon")

LARGE = 1 << 20
"""A body with more bytes is not written in one go: to copy it would hold up others."""

_SLICE = 64 << 10
"""How many bytes of a large body are written at once."""


Received = Answer | Coroutine[Any, Any, Answer]
"""What the service makes of a call: an answer, or what gives it in time."""

LEFT = Outcome(Kind.MISS, reason=Reason.CUT)
"""Logged for a client that left before its answer was ready."""


class Writer:
    """Answers the calls of one client on its transport."""

    def __init__(
        self, transport: asyncio.Transport, desk: Desk, is_alive: Callable[[], object]
    ) -> None:
        """`is_alive` is called whenever the client has taken something."""
        self.is_full = False
        """Whether the client reads more slowly than it is answered."""
        self._transport = transport
        self._desk = desk
        self._is_alive = is_alive
        self.delivery = Delivery(lambda: transport.get_write_buffer_size())
        self._started = 0.0
        """When the present call came."""
        self._size = 0
        """How many bytes were written of the body of its answer."""
        self._room: asyncio.Future[None] | None = None
        """Done when the client has room again; None before anybody has waited for that."""

    def pause(self) -> None:
        self.is_full = True

    def resume(self) -> None:
        self.is_full = False
        if self._room and not self._room.done():
            self._room.set_result(None)

    def serve_at_once(self, ask: Ask, hit: Hit, started: float) -> bool:
        """Writes a hit, if that can be done in one go."""
        if len(hit.body) > LARGE or (hit.is_stream and self._desk.replay_rate):
            return False
        outcome = hit.outcome
        self._transport.write(http1.hit(hit.head, outcome.age(time.time()), ask.id, hit.body))
        if ask.claim:
            self._wrote(ask)
        if hit.is_stream:
            self._desk.begun(started)
        self._desk.hit(ask, outcome, started, len(hit.body))
        return True

    async def serve(self, ask: Ask, answer: Received, started: float) -> Bypass | None:
        """Waits for the answer to a call, and writes it; what is not for the cache to answer is
        returned. Raises `Cut` where an answer breaks off."""
        outcome, is_complete = LEFT, False
        self._started, self._size = started, 0
        try:
            if isinstance(answer, Coroutine):
                answer = await _answer_of(answer)
            if isinstance(answer, Bypass):
                ask.settle(is_delivered=False)
                return answer
            outcome = answer.outcome
            self._is_alive()
            ask.outlet = self
            await self._answer(ask, answer)
            is_complete = True
        except Cut:
            raise
        except Exception:  # nobody else would end what has begun
            logger.exception("sglang-cached: an answer in the fast lane broke off")
            raise Cut from None
        finally:
            if isinstance(answer, Streamed):
                answer.close(is_complete)
                outcome = answer.outcome
            if not isinstance(answer, Bypass):
                if ask.claim:
                    self._wrote(ask, is_whole=is_complete)
                self._log(ask, answer if is_complete else None, outcome, started)
        return None

    def _log(self, ask: Ask, answer: Received | None, outcome: Outcome, started: float) -> None:
        """Tells of an answer that is over; None where it broke off."""
        status = answering.status_of(answer) if isinstance(answer, Hit | Reply | Streamed) else None
        head, seconds = ask.head, time.monotonic() - started
        self._desk.log(Ended(head.path, outcome, seconds, ask.id, head.run, status, self._size))

    def _wrote(self, ask: Ask, *, is_whole: bool = True) -> None:
        self.delivery.look()
        if is_whole and not self._transport.get_write_buffer_size():
            ask.settle(is_delivered=True)
        else:
            self.delivery.wrote(ask, is_whole=is_whole)

    async def _answer(self, ask: Ask, answer: Hit | Reply | Streamed) -> None:
        upstream = self._desk.upstream_url
        if pieces := pieces_of(answer, self._desk.replay_rate):
            fields = answering.fields_of(answer, upstream, None, ask.id)
            await self._write_events(answering.head(200, fields), pieces)
        else:
            assert not isinstance(answer, Streamed)
            fields = answering.fields_of(answer, upstream, len(answer.body), ask.id)
            head = answering.head(answering.status_of(answer), fields)
            await self._write(head, answer.body)

    async def _write(self, head: bytes, body: bytes) -> None:
        self._size = len(body)
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

    async def _write_events(self, head: bytes, pieces: AsyncIterator[list[bytes]]) -> None:
        """Each event in a chunk of its own."""
        self._transport.write(head)
        async with aclosing(pieces) as each:  # type: ignore[type-var]
            async for events in each:
                if events:
                    self.write_events(events)
                    await self._has_room()
        self._transport.write(http1.LAST_CHUNK)
        self._size += len(http1.LAST_CHUNK)

    def write_events(self, events: list[bytes]) -> None:
        if not self._size:
            self._desk.begun(self._started)
        data = http1.chunks(events)
        self._size += len(data)
        self._transport.write(data)
        self._is_alive()

    async def _has_room(self) -> None:
        """Waits until the client has taken most of what it was sent."""
        self._is_alive()
        while self.is_full and not self._transport.is_closing():
            self._room = asyncio.get_running_loop().create_future()
            await self._room


async def _answer_of(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    try:
        return await coroutine
    except Exception:  # as with a hook that fails: the request goes on without us
        logger.exception("sglang-cached: error in the fast lane")
        return PASSED_ON


def pieces_of(answer: Hit | Reply | Streamed, rate: float) -> AsyncIterator[list[bytes]] | None:
    """The events of an answer that is a stream; those that are stored come at a pace in tokens a
    second, or at once if that is 0."""
    if isinstance(answer, Streamed):
        return answer.pieces
    if isinstance(answer, Hit) and answer.is_stream:
        return paced(http1.unchunked(answer.body), answer.seconds(rate))
    return None


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
