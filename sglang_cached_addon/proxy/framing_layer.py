"""The layer that every client's bytes go through before mitmproxy reads them as HTTP.

It stands before mitmproxy's `HttpLayer`, whatever the way in. `framing` says what may go on:
one request at a time, the next when the one before is answered and its answer was taken; what
comes meanwhile waits here, and, where that is much, with the client. What is refused gets an
answer in JSON and a connection that is closed in good order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from enum import Enum
from typing import Any

from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer

from sglang_cached_addon.proxy import inside
from sglang_cached_addon.proxy.connections import ClientConnection, HeadTimer, Progress
from sglang_cached_addon.service.error_bodies import error_body
from sglang_cached_addon.wire import framing
from sglang_cached_addon.wire.framing import Phase
from sglang_cached_addon.wire.heads import FramingError, RequestHead

MAX_HELD = 256 * 1024
"""How many bytes are taken from a client while its answer is waited for."""

MAX_QUEUED = 4
"""Pieces of a body that mitmproxy cannot do anything with yet, before no more is taken from its
client."""

MAX_UNREAD = 64 * 1024
"""Bytes of answers that wait for a client before its next request is looked at."""

LINGER_SECONDS = 2.0
"""How long a client whose request was refused may go on sending: hung up at once, TCP would
throw away the answer that says why."""


class Treatment(Enum):
    """What becomes of a client's bytes."""

    CHECKED = "they are requests"
    PASSED = "they are no requests: passed on as they are"
    DROPPED = "nobody wants them any more"


class OwnEvent(events.Event):
    """An event that mitmproxy knows nothing of."""


class HeadIsLate(OwnEvent):
    """A head has taken too long."""


class AnswerIsRead(OwnEvent):
    """The client has read what it was sent."""


class LingeringIsOver(OwnEvent):
    """A client that was refused has had its time to read why."""


class FramingLayer(layer.Layer):
    """Stands before the `HttpLayer` that is set as its `child_layer`."""

    child_layer: HttpLayer

    def __init__(
        self, context: Context, connection: ClientConnection, bound: Callable[[RequestHead], float]
    ) -> None:
        """Notes itself as the door of the connection. `bound`: bytes that the body behind a head
        may have."""
        super().__init__(context)
        self.seen = 0
        """How many bytes have come to it."""
        self._connection = connection
        self._requests = framing.Requests(bound)
        self.head = HeadTimer(lambda: self._start(self._tell(HeadIsLate())))
        self._state = Treatment.CHECKED
        self._is_ahead = False
        """The client has sent more of a body than mitmproxy can do anything with yet."""
        self._taking: asyncio.Task[None] | None = None
        """Waits until the client has taken what it was sent."""
        self._tasks: set[asyncio.Task[None]] = set()
        connection.door = self
        if context.client.tls:
            connection.lane = None  # it understands nothing of what goes through it

    @property
    def progress(self) -> Progress | None:
        """As `connections.Stage`."""
        if self._state is not Treatment.CHECKED:
            return Progress.PIPE
        if self._requests.phase is Phase.HEAD:
            return Progress.HEAD if self._requests.held or not self.seen else Progress.IDLE
        return Progress.BODY if self._requests.phase is Phase.BODY else Progress.ANSWER

    @property
    def is_idle(self) -> bool:
        """Whether it, and mitmproxy behind it, are between two requests."""
        return self.progress is Progress.IDLE and inside.is_idle(
            self.child_layer, self.context.client
        )

    def handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        try:
            if type(event) is events.DataReceived and event.connection is self.context.client:
                self.seen += len(event.data)
                yield from self._receive(event.data)
            elif isinstance(event, HeadIsLate):
                self.head.end()
                if self.progress is Progress.HEAD:
                    raise FramingError(408, "the request head took too long")
            elif isinstance(event, LingeringIsOver):
                yield commands.CloseConnection(self.context.client)
            elif isinstance(event, AnswerIsRead):
                self._taking = None
            else:
                yield from self._pass(event)
            yield from self._go_on()
        except FramingError as e:
            yield from self._refuse(e)

    # Required by mitmproxy; `handle_event` leaves nothing for it to do.
    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        return self.handle_event(event)

    def _receive(self, data: bytes) -> layer.CommandGenerator[None]:
        is_http1 = inside.http1_server(self.child_layer, self.context.client) is not None
        if self._state is Treatment.CHECKED and not is_http1:
            self._state = Treatment.PASSED  # HTTP/2, which has frames
        if self._state is Treatment.CHECKED:
            data = self._requests.receive(data)
        elif self._state is Treatment.DROPPED:
            data = b""
        yield from self._give(data)

    def _give(self, data: bytes) -> layer.CommandGenerator[None]:
        if data:
            yield from self._pass(events.DataReceived(self.context.client, data))

    def _pass(self, event: events.Event) -> layer.CommandGenerator[None]:
        """Lets mitmproxy have an event. Once it was refused, it says nothing more to the client."""
        for command in self.child_layer.handle_event(event):
            if not (
                self._state is Treatment.DROPPED
                and isinstance(command, commands.ConnectionCommand)
                and command.connection is self.context.client
            ):
                yield command

    def _go_on(self) -> layer.CommandGenerator[None]:
        """Gives the next requests, as far as it is their turn."""
        while self._state is Treatment.CHECKED and self._requests.phase is Phase.OVER:
            if inside.is_pipe(self.child_layer, self.context.client):
                self._state = Treatment.PASSED
                yield from self._give(self._requests.release())
            elif not inside.is_idle(self.child_layer, self.context.client):
                break
            elif self._connection.unread > MAX_UNREAD:
                self._taking = self._taking or self._start(self._take())
                break
            else:
                data = self._requests.next()
                self._connection.transport.resume_reading()
                yield from self._give(data)
        if self.seen and self.progress is Progress.HEAD:
            self.head.begin()
        else:
            self.head.end()
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Takes no more from a client that is ahead of what can be done with what it sends."""
        was_ahead, is_read = self._is_ahead, self._state is Treatment.CHECKED
        self._is_ahead = is_read and inside.queued(self.child_layer) > MAX_QUEUED
        if self._is_ahead or self._requests.held > MAX_HELD:
            self._connection.transport.pause_reading()
        elif was_ahead:
            self._connection.transport.resume_reading()

    def _refuse(self, refused: FramingError) -> layer.CommandGenerator[None]:
        """Answers, unless there is an answer, and hangs up when the client has heard it."""
        client = self.context.client
        self._state = Treatment.DROPPED
        self._requests.release()
        self.head.end()
        server = inside.http1_server(self.child_layer, client)
        response = server.response if server else None
        if response is None or response.status_code < 200:
            yield commands.SendData(client, refusal(refused.status, str(refused)))
        # Nobody waits for what has begun.
        yield from self._pass(events.ConnectionClosed(client))
        self._connection.transport.resume_reading()
        yield commands.CloseTcpConnection(client, half_close=True)
        self._start(self._linger())

    # What is waited for

    def _start(self, waits: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # Not eagerly: mitmproxy is in the middle of an event.
        task = asyncio.Task(waits)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tell(self, event: OwnEvent) -> None:
        await self._connection.handler.server_event(event)

    async def _take(self) -> None:
        with suppress(OSError):  # mitmproxy sees that itself
            await self._connection.writer.drain()
            await self._tell(AnswerIsRead())

    async def _linger(self) -> None:
        await asyncio.sleep(LINGER_SECONDS)
        await self._tell(LingeringIsOver())


_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


def refusal(status: int, message: str) -> bytes:
    """The last answer on a connection."""
    phrase = _PHRASES[status]
    body = error_body(status, phrase.title().replace(" ", ""), f"sglang-cached: {message}")
    return _REFUSAL % (status, phrase.encode(), len(body), body)


_REFUSAL = (
    b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\ncontent-length: %d\r\n"
    b"Connection: close\r\n\r\n%b"
)
