"""One connection to upstream: requests are written to it, and their responses are read.

Who is cancelled, or leaves before the end of a body, has the connection closed, which is how SGLang
learns that nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_cached_addon.wire.failures import what_failed
from sglang_cached_addon.wire.heads import FramingError, ResponseHead
from sglang_cached_addon.wire.responses import Responses

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields, in their order."""

# Received into and copied from before anything else happens, so all connections share it.
_VIEW = memoryview(bytearray(64 * 1024))

MAX_HELD = 128 * 1024
"""How many bytes may have come that nobody has taken yet, before no more are read."""

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade".split()
)
"""Fields of one connection, not of the message (RFC 9110 §7.6.1)."""

_numbers = itertools.count(1)


class Broken(Exception):
    """The upstream hung up, or spoke no HTTP, before the answer was complete."""


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """A response with all of its body."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    """The header fields, without those of the connection; names are as upstream writes them."""
    body: bytes
    connection: int
    """The number of the connection that it came on. No other connection has the same."""


class Response:
    """A response whose body comes in pieces."""

    sent = None
    is_altered = False
    held = 0.0
    """Nobody has changed it, or held it: as `observing.Answer` has it."""

    def __init__(self, connection: Connection, head: ResponseHead) -> None:
        self._connection = connection
        self.greeting = connection.greeting
        """What the greeting of the server on this connection gave, once that is known; None if it
        could not be greeted."""
        self.status = head.status
        dropped = HOP_BY_HOP | named_in_connection(head.fields)
        self.headers = tuple([field for field in head.fields if field[0].lower() not in dropped])

    @property
    def ends(self) -> tuple[Any, Any, float]:
        """The connection's socket addresses, ours and the server's, and when it was made: Unix
        seconds."""
        of = self._connection
        return *map(of.transport.get_extra_info, ("sockname", "peername")), of.made_at

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Broken`."""
        return self._connection.body()

    async def whole(self) -> WholeResponse:
        """Waits for the end of the body. Raises `Broken`."""
        body = b"".join([piece async for piece in self.pieces()])
        return WholeResponse(self.status, self.headers, body, self._connection.number)


class Connection(asyncio.BufferedProtocol):
    """A connection that carries one request after the other."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.is_fresh = True
        """It has not carried a whole exchange yet."""
        self.greeting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """What `Response.greeting` says."""
        self.former: Any = None
        """What the greeting before the present one gave; None before the second."""
        self._responses = Responses()
        self._idle_since = 0.0
        self._error: Exception | None = None
        """What has ended the connection, if neither side has closed it in good order."""
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when something has come that was not looked at, be it the end."""
        self._is_paused = False
        """No more is read until what has come is taken."""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.made_at = time.time()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _VIEW

    def buffer_updated(self, nbytes: int) -> None:
        self._responses.receive(_VIEW[:nbytes])
        if self._responses.held > MAX_HELD:
            self._is_paused = True
            self.transport.pause_reading()
        self._tell()

    def eof_received(self) -> None:
        self._responses.receive(b"")
        self._tell()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            self._error = exc
        else:
            self._responses.receive(b"")
        self._tell()

    def _tell(self) -> None:
        if not self._news.done():
            self._news.set_result(None)

    # What its user calls

    @property
    def has_begun(self) -> bool:
        """Some of the present answer has come."""
        return self._responses.has_begun

    async def exchange(self, method: str, request: bytes) -> Response:
        """Sends a request with this method, and gives its response, whose head has come. Hangs up
        if there is none. Raises `Broken`."""
        try:
            if self._responses.held and not self.is_fresh:
                raise Broken("it has sent what nobody has asked for")
            self._responses.expect(method)
            # The system takes as much at once as it can. The rest goes while the answer is waited
            # for, which may come before the server has read the body, if it ever reads it.
            self.transport.write(request)
            return Response(self, await self._head())
        except BaseException:
            self.abort()
            raise

    async def _head(self) -> ResponseHead:
        try:
            while (head := self._responses.head()) is None:
                await self._receive("it hung up without an answer")
        except FramingError as e:
            raise Broken(f"it does not speak HTTP as it should: {e}") from e
        return head

    async def body(self) -> AsyncIterator[bytes]:
        """The body of the present response, as it comes. Raises `Broken`."""
        try:
            while True:
                if data := self._take():
                    yield data
                if self._responses.is_over:
                    return
                await self._receive("it hung up in the middle of an answer")
        except FramingError as e:
            raise Broken(f"it does not speak HTTP as it should: {e}") from e

    def _take(self) -> bytes:
        """What has come of the body and was not given on."""
        data = b"".join(self._responses.pieces())
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()
        return data

    async def _receive(self, too_short: str) -> None:
        """Waits until something has come that was not looked at. Raises `Broken`, with the words
        `too_short` where the server has hung up."""
        if not self._news.done():
            if isinstance(self._error, OSError):
                raise Broken(what_failed(self._error)) from self._error
            if self._error:
                raise self._error
            if self._responses.has_ended:
                raise Broken(too_short)
        try:
            await self._news
        finally:
            self._news = asyncio.get_running_loop().create_future()

    def finish(self) -> bool:
        """Ends the present exchange. Gives whether there can be another one."""
        if not self._responses.keeps:
            return False
        if self.transport.get_write_buffer_size():
            return False  # answered before the body was sent
        self.is_fresh = False
        self._idle_since = time.monotonic()
        return True

    def is_usable(self, idle_seconds: float) -> bool:
        """Whether an idle connection is still open, not idle for too long, and without bytes that
        would belong to no request."""
        is_young = time.monotonic() - self._idle_since < idle_seconds
        return is_young and self._responses.keeps and not self.transport.is_closing()

    def greeted(self, said: Any) -> None:
        """Notes what the greeting gave, or None where the server cannot be greeted."""
        if not self.greeting.done():
            self.greeting.set_result(said)

    def abort(self) -> None:
        """Hangs up."""
        self.transport.abort()

    def close(self) -> None:
        """Hangs up, and the server is not greeted any more."""
        self.greeted(None)
        self.abort()


def named_in_connection(headers: Headers) -> set[bytes]:
    """The lower-case names of fields that `Connection` says are of the connection."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {name.strip().lower() for value in values for name in value.split(b",")}
