"""One connection to upstream: requests are written to it, and their responses are read.

Who is cancelled, or leaves before the end of a body, has the connection closed, which is how SGLang
learns that nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sglang_cached_addon.wire.heads import FramingError, ResponseHead
from sglang_cached_addon.wire.responses import Responses

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields, in their order."""

_READ_BYTES = 64 * 1024

HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
"""Fields of one connection, not of the message (RFC 9110 §7.6.1)."""

_numbers = itertools.count(1)


class Broken(Exception):
    """The upstream hung up, or spoke no HTTP, before the answer was complete."""


class Response:
    """A response whose body comes in pieces."""

    def __init__(self, connection: Connection, head: ResponseHead) -> None:
        self._connection = connection
        self.greeting = connection.greeting
        """What the greeting of the server on this connection gave, once that is known; None if it
        could not be greeted."""
        self.status = head.status
        self.headers = end_to_end(head.fields)
        self.connection = connection.number

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Broken`."""
        return self._connection.body()


class Connection:
    """A connection that carries one request after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = next(_numbers)
        self.is_fresh = True
        """It has not carried a whole exchange yet."""
        self.greeting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """As `Response.greeting`."""
        self.former: Any = None
        """What the greeting before the present one gave."""
        self._reader = reader
        self._writer = writer
        self._responses = Responses()
        self._idle_since = 0.0

    @property
    def has_begun(self) -> bool:
        """Some of the present answer has come."""
        return self._responses.has_begun

    async def exchange(self, method: str, request: bytes) -> ResponseHead:
        """Sends a request with this method, and gives the head of its response. Hangs up if there
        is none. Raises `Broken`."""
        try:
            self._responses.expect(method)
            # As much of it at once as the system takes. What is left goes while the answer is
            # waited for: it may come before upstream has read the body, or never does.
            self._writer.write(request)
            return await self._head()
        except BaseException:
            self.abort()
            raise

    async def _head(self) -> ResponseHead:
        try:
            while (head := self._responses.head()) is None:
                if self._responses.has_ended:
                    raise Broken("it hung up without an answer")
                await self._receive()
        except FramingError as e:
            raise Broken(f"it does not speak HTTP as it should: {e}") from e
        return head

    async def body(self) -> AsyncIterator[bytes]:
        """The body of the present response, as it comes. Raises `Broken`."""
        try:
            while True:
                for piece in self._responses.pieces():
                    yield piece
                if self._responses.is_over:
                    return
                if self._responses.has_ended:
                    raise Broken("it hung up in the middle of an answer")
                await self._receive()
        except FramingError as e:
            raise Broken(f"it does not speak HTTP as it should: {e}") from e

    async def _receive(self) -> None:
        try:
            self._responses.receive(await self._reader.read(_READ_BYTES))
        except OSError as e:
            raise Broken(what_failed(e)) from e

    def finish(self) -> bool:
        """Ends the present exchange. Gives whether there can be another one."""
        if not self._responses.keeps:
            return False
        if self._writer.transport.get_write_buffer_size():
            return False  # answered before the body was sent
        self.is_fresh = False
        self._idle_since = time.monotonic()
        return True

    def is_usable(self, idle_seconds: float) -> bool:
        """Whether an idle connection is still open, not idle for too long, and nothing has come on
        it, which would belong to no request."""
        unread = self._reader._buffer  # type: ignore[attr-defined]
        is_young = time.monotonic() - self._idle_since < idle_seconds
        return is_young and not (unread or self._reader.at_eof() or self._writer.is_closing())

    def greeted(self, said: Any) -> None:
        """Notes what the greeting gave, or None where the server cannot be greeted."""
        if not self.greeting.done():
            self.greeting.set_result(said)

    @property
    def is_open(self) -> bool:
        return not self._writer.is_closing()

    def abort(self) -> None:
        """Hangs up."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Hangs up, and the server is not greeted any more."""
        self.greeted(None)
        self.abort()


def named_in_connection(headers: Headers) -> set[bytes]:
    """The lower-case names of fields that `Connection` says are of the connection."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {name.strip().lower() for value in values for name in value.split(b",")}


def end_to_end(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that are not of the connection."""
    dropped = HOP_BY_HOP | named_in_connection(headers)
    return tuple((n, v) for n, v in headers if n.lower() not in dropped)


def what_failed(error: OSError) -> str:
    """What has failed, for people."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if error.errno is None:  # asyncio's summary of several attempts
        text = str(error) or type(error).__name__
        return "no address of it can be connected to" if "Multiple" in text else text
    # asyncio's own words for a refused connection say less than the system's; those for a name
    # that is not known are the system's.
    is_name = isinstance(error, socket.gaierror)
    return str(error.strerror) if is_name else os.strerror(error.errno)
