"""An answer of ours that comes piece by piece: mitmproxy is shown an upstream that sends it.

mitmproxy streams what a server sends, and sends what an addon answers in one piece. A `Feed`
stands in `HttpLayer` where the connection to a server would, so that everything else (hooks,
the client that leaves, the one that reads slowly) is as with a server. A task of its own hands it
the events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionHandler

from sglang_cached_addon.proxy.inside import http_base, http_events
from sglang_cached_addon.service.stream import Cut
from sglang_cached_addon.wire import http1

logger = logging.getLogger("sglang_cached_addon")


@dataclass(frozen=True, slots=True, eq=False)
class FeedAnswer:
    """A streamed answer of ours."""

    response: http.Response
    """The head of the answer."""
    pieces: AsyncIterator[list[bytes]]
    """The events of its body. Raises `Cut` where they break off."""
    gave: Callable[[int], object]
    """Called with how many bytes are given, as they are on the wire."""
    ended: Callable[[bool], object]
    """Called once, with whether all of them were given."""


@dataclass
class MorePieces(events.ConnectionEvent):
    """More of the body: each piece is sent in a chunk of its own."""

    pieces: list[bytes]


@dataclass
class Ended(events.ConnectionEvent):
    """There is no more."""

    is_complete: bool


class Feed(http_base.HttpConnection):
    """Plays the upstream of one request."""

    def __init__(self, context: Context, answer: FeedAnswer, handler: ConnectionHandler) -> None:
        # Without an address, so that it is never taken for a server that can be used again.
        server = Server(address=None)
        server.state = ConnectionState.OPEN
        super().__init__(context, server)
        self._answer = answer
        self._handler = handler
        self._pumping: asyncio.Task[None] | None = None
        self._stream_id = 0
        self.is_over = False

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if isinstance(event, http_events.RequestProtocolError):
            self.is_over = True
            if self._pumping:
                self._pumping.cancel()
        elif isinstance(event, http_events.RequestEndOfMessage):
            self._stream_id = event.stream_id
            yield http_base.ReceiveHttp(
                http_events.ResponseHeaders(
                    self._stream_id, self._answer.response, end_stream=False
                )
            )
            self._pumping = asyncio.get_running_loop().create_task(self._pump())
        elif isinstance(event, MorePieces):
            for piece in event.pieces:
                yield http_base.ReceiveHttp(http_events.ResponseData(self._stream_id, piece))
        elif isinstance(event, Ended):
            self.is_over = True
            if event.is_complete:
                yield http_base.ReceiveHttp(http_events.ResponseEndOfMessage(self._stream_id))
            else:
                # What a client sees of a server that hangs up.
                code = http_events.ResponseProtocolError.code
                error = http_events.ResponseProtocolError(
                    self._stream_id, "the stream broke off", code
                )
                yield http_base.ReceiveHttp(error)
        else:
            assert isinstance(event, events.Start | http_base.HttpEvent)
            yield from ()

    async def _pump(self) -> None:
        """Gives the pieces as they come, and as the client takes them."""
        is_complete = False
        try:
            async for pieces in self._answer.pieces:
                self._answer.gave(len(http1.chunks(pieces)))
                await self._handler.server_event(MorePieces(self.conn, pieces))
                await self._handler.drain_writers()
            self._answer.gave(len(http1.LAST_CHUNK))
            is_complete = True
        except Cut:
            pass
        except Exception:  # the client would wait for ever
            logger.exception("sglang-cached: a stream broke off")
        finally:
            self._answer.ended(is_complete)
        await self._handler.server_event(Ended(self.conn, is_complete))
