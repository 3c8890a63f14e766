"""HTTP/1.1 to one upstream, on connections that are kept: asyncio's streams, and h11 for the
protocol.

Nothing here waits for an answer with a limit: who asks sets one, if any. Who is cancelled, or
leaves before the end of a body, has the connection closed, which is how SGLang learns that
nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
from h11._readers import ChunkedReader

from sglang_cached_addon.wire import descriptors
from sglang_cached_addon.wire.strict import StrictReader

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields, in order."""

CONNECT_SECONDS = 10.0

IDLE_SECONDS = 4.0
"""How long a connection is kept for the next request: uvicorn hangs up after 5."""

MAX_IDLE = 256
"""Connections that are kept."""

_HEAD_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024

# Fields of one connection, not of the message (RFC 9110 §7.6.1), and those that are ours to say.
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
_OURS = _HOP_BY_HOP | {b"expect", b"host", b"content-length", b"accept-encoding"}

_PORTS = {"http": 80, "https": 443}

_numbers = itertools.count(1)


class Unreachable(Exception):
    """No connection could be made; the message says why."""


class Broken(Exception):
    """The upstream hung up, or spoke no HTTP, before the answer was complete."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    """Without those of the connection; names as upstream writes them."""
    body: bytes
    connection: int
    """The number of the connection that it came on: an equal one is the same connection."""


Ask = Callable[[str, str, Headers], Awaitable[Answer]]
"""Sends a request (method, path, header fields); raises `Unreachable` or `Broken`."""

Greet = Callable[[Ask, Any], Coroutine[Any, Any, Any]]
"""Asks something on one connection, given what was said there before (None: nothing); raises
`Unreachable` or `Broken`."""


class Response:
    """A response whose body comes in pieces."""

    def __init__(self, connection: _Connection, head: h11.Response) -> None:
        self._connection = connection
        self.greeting = connection.greeting
        """What came of greeting the server on this response's connection, once it is known; None if
        it could not be greeted."""
        self.status: int = head.status_code
        self.headers = _end_to_end(head.headers.raw_items())
        self.connection = connection.number

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Broken`."""
        while not isinstance(event := await self._connection.receive(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise Broken("it hung up in the middle of an answer")
            yield bytes(event.data)


class _Connection:
    """One, with what h11 knows of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = next(_numbers)
        self.is_fresh = True
        """It has not carried a whole exchange."""
        self.has_begun = False
        """Some of the present answer has come."""
        self.greeting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.former: Any = None
        """What came of greeting the server before."""
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
        self._idle_since = 0.0

    def send(self, request: h11.Request, body: bytes) -> None:
        """Hands the request to the system, as much of it at once as that takes. The rest goes while
        the answer is waited for: it may come before upstream has read the body, or never does."""
        data = self._http.send(request) or b""
        if body:
            data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        self._writer.write(data)

    async def exchange(self, request: h11.Request, body: bytes) -> h11.Response:
        """Sends a request; the head of its answer. Closed if there is none. Raises `Broken`."""
        try:
            self.send(request, body)
            return await self.head()
        except BaseException:
            self.abort()
            raise

    async def head(self) -> h11.Response:
        """The head of the answer. Raises `Broken`."""
        while isinstance(event := await self.receive(), h11.InformationalResponse):
            pass
        if not isinstance(event, h11.Response):
            raise Broken("it hung up without an answer")
        if type(self._http._reader) is ChunkedReader:
            self._http._reader = StrictReader()
        return event

    async def receive(self) -> object:
        """h11's next event. Raises `Broken`."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._reader.read(_READ_BYTES)
                self.has_begun = self.has_begun or bool(data)
                self._http.receive_data(data)
        except OSError as e:
            raise Broken(_text(e)) from e
        except h11.RemoteProtocolError as e:
            raise Broken(f"it does not speak HTTP as it should: {e}") from e
        return event

    def rest(self) -> bool:
        """Gets ready for the next request; whether there can be one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        if self._http.trailing_data[0]:
            return False  # more than one answer
        if self._writer.transport.get_write_buffer_size():
            return False  # answered before the body was sent
        self._http.start_next_cycle()
        self.is_fresh = self.has_begun = False
        self._idle_since = time.monotonic()
        return True

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection is as it was: what has come since belongs to no request."""
        unread = self._reader._buffer  # type: ignore[attr-defined]
        is_young = time.monotonic() - self._idle_since < IDLE_SECONDS
        return is_young and not (unread or self._reader.at_eof() or self._writer.is_closing())

    def greeted(self, said: Any) -> None:
        """Notes what came of greeting the server, or that it cannot be greeted (None)."""
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


class Client:
    """Asks one upstream."""

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        keeps_host: bool = False,
        greet: Greet | None = None,
        is_lasting: Callable[[Any], bool] = lambda said: True,
    ) -> None:
        """`url` is scheme://host[:port]. `tls` is how an https one is spoken to, if not with the
        system's certificates. `keeps_host`: it is told the host that the client has asked. `greet`
        asks the server something on each connection, behind the first answer, and behind later ones
        unless what it has said `is_lasting`."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        host = f"[{self._host}]" if ":" in self._host else self._host
        is_default = self._port == _PORTS[parts.scheme]
        self._authority = (host if is_default else f"{host}:{self._port}").encode()
        is_https = parts.scheme == "https"
        self._ssl = (tls or ssl.create_default_context()) if is_https else None
        self._keeps_host = keeps_host
        self._greet = greet
        self._is_lasting = is_lasting
        self._greeting: dict[asyncio.Task[None], _Connection] = {}
        self._idle: list[_Connection] = []
        self._is_closed = False

    @asynccontextmanager
    async def open(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AsyncIterator[Response]:
        """Sends a request, with the client's own header fields, and gives the answer's head as soon
        as it is there. Raises `Unreachable` or `Broken`."""
        connection, head = await self._exchange(self._request(method, path, headers, body), body)
        try:
            yield Response(connection, head)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)

    async def ask(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Answer:
        """Sends a request, and gives its whole answer. Raises `Unreachable` or `Broken`."""
        async with self.open(method, path, headers, body) as response:
            pieces = [piece async for piece in response.pieces()]
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return Answer(response.status, response.headers, data, response.connection)

    def close(self) -> None:
        """Hangs up what is idle; what is in use when it is done."""
        self._is_closed = True
        for task, connection in tuple(self._greeting.items()):
            task.cancel()
            connection.close()
        while self._idle:
            self._idle.pop().close()

    def _request(self, method: str, path: str, headers: Headers, body: bytes) -> h11.Request:
        dropped = _OURS | _named(headers)
        fields = [(n, v) for n, v in headers if n.lower() not in dropped]
        hosts = [value for name, value in headers if name.lower() == b"host"]
        host = hosts[0] if self._keeps_host and hosts else self._authority
        fields.append((b"Host", host))
        # It is read as it passes.
        fields.append((b"Accept-Encoding", b"identity"))
        if body or method in ("POST", "PUT", "PATCH"):
            fields.append((b"Content-Length", b"%d" % len(body)))
        try:
            return h11.Request(method=method, target=path, headers=fields)
        except (h11.LocalProtocolError, UnicodeEncodeError) as e:
            raise Broken(f"the request cannot be sent: {e}") from e

    async def _exchange(
        self, request: h11.Request, body: bytes
    ) -> tuple[_Connection, h11.Response]:
        """Sends a request, and waits for the head of its answer."""
        connection = self._take() or await self._connect()
        try:
            return connection, await connection.exchange(request, body)
        except Broken:
            # A kept connection may be hung up at the very moment at which it is used: what was not
            # answered at all is sent once more, and not on another kept one, which may be as dead.
            if connection.is_fresh or connection.has_begun:
                raise
        connection = await self._connect()
        return connection, await connection.exchange(request, body)

    def _take(self) -> _Connection | None:
        """The connection that was used last, if it still can be."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.close()
        return None

    def _give_back(self, connection: _Connection) -> None:
        if not connection.rest() or self._is_closed:
            connection.close()
        elif self._greet and not connection.greeting.done():
            task = asyncio.ensure_future(self._meet(connection, self._greet))
            self._greeting[task] = connection
            task.add_done_callback(self._greeting.pop)
        else:
            self._keep(connection)
        # Those below are older. What a burst has left would else stay half closed for ever.
        while self._idle and not self._idle[0].is_usable:
            self._idle.pop(0).close()

    async def _meet(self, connection: _Connection, greet: Greet) -> None:
        """Greets the server, and keeps the connection if it still can be used."""

        async def ask(method: str, path: str, headers: Headers) -> Answer:
            head = await connection.exchange(self._request(method, path, headers, b""), b"")
            response = Response(connection, head)
            try:
                body = b"".join([piece async for piece in response.pieces()])
            except BaseException:  # who asks may have enough, and go on without
                connection.abort()
                raise
            if not connection.rest():
                raise Broken("it does not keep the connection")
            return Answer(response.status, response.headers, body, response.connection)

        said = None
        try:
            with suppress(Unreachable, Broken):
                said = await greet(ask, connection.former)
        finally:  # answers wait for it, whatever comes of it
            connection.greeted(said)
            if said is None:
                connection.abort()
        if connection.is_open:
            self._keep(connection)

    def _keep(self, connection: _Connection) -> None:
        if self._is_closed or len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        if self._greet and not self._is_lasting(connection.greeting.result()):
            connection.former = connection.greeting.result()
            connection.greeting = asyncio.get_running_loop().create_future()
        self._idle.append(connection)

    async def _connect(self) -> _Connection:
        while True:
            await descriptors.for_upstream()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    streams = await asyncio.open_connection(self._host, self._port, ssl=self._ssl)
            except TimeoutError:
                raise Unreachable(f"no connection within {CONNECT_SECONDS:.0f} s") from None
            except OSError as e:
                if e.errno in descriptors.SHORT:  # others were quicker
                    await asyncio.sleep(descriptors.WAIT_SECONDS)
                    continue
                raise Unreachable(_text(e)) from e
            return _Connection(*streams)


def tls_context(
    *, insecure: bool = False, authorities: str | None = None, certificate: str | None = None
) -> ssl.SSLContext:
    """How TLS is spoken. `insecure`: the server's certificate is not checked; `authorities` is a
    file of those that are trusted instead of the system's, `certificate` one with the client's
    own and its key. Raises `OSError` where one cannot be read."""
    context = ssl.create_default_context(cafile=authorities)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate:
        context.load_cert_chain(certificate)
    return context


def _named(headers: Headers) -> set[bytes]:
    """The fields that `Connection` says are of the connection, too."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {name.strip().lower() for value in values for name in value.split(b",")}


def _end_to_end(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    dropped = _HOP_BY_HOP | _named(headers)
    return tuple((n, v) for n, v in headers if n.lower() not in dropped)


def _text(error: OSError) -> str:
    """What went wrong, for people."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if error.errno is None:  # asyncio's summary of several attempts
        text = str(error) or type(error).__name__
        return "no address of it can be connected to" if "Multiple" in text else text
    # asyncio's own words for a refused connection say less than the system's; those for a name
    # that is not known are the system's.
    is_name = isinstance(error, socket.gaierror)
    return str(error.strerror) if is_name else os.strerror(error.errno)
