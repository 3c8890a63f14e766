"""HTTP/1.1 to one upstream, on connections that are kept.

Nothing here waits for an answer with a limit: who asks sets one, if any. Who is cancelled, or
leaves before the end of a body, has the connection closed, which is how SGLang learns that
nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from sglang_cached_addon.core import runs
from sglang_cached_addon.wire import descriptors
from sglang_cached_addon.wire.connection import (
    HOP_BY_HOP,
    Broken,
    Connection,
    Headers,
    Response,
    WholeResponse,
    named_in_connection,
    what_failed,
)
from sglang_cached_addon.wire.heads import FIELD
from sglang_cached_addon.wire.location import PORTS

CONNECT_SECONDS = 10.0
"""How many seconds it may take to connect."""

IDLE_SECONDS = 4.0
"""For how many seconds a connection is kept for the next request; uvicorn hangs up after 5."""

MAX_IDLE = 256
"""How many idle connections are kept."""

# The client's fields that are not passed on: those of its connection, and those that are written
# here anew, or are for the cache.
_NOT_PASSED_ON = HOP_BY_HOP | {
    b"expect",
    b"host",
    b"content-length",
    b"accept-encoding",
    runs.HEADER,
}

_TARGET = re.compile(r"[\x21-\x7e]+")


class Unreachable(Exception):
    """No connection could be made; the message says why."""


Ask = Callable[[str, str, Headers], Awaitable[WholeResponse]]
"""A function that sends a request (method, path, header fields). Raises `Unreachable` or
`Broken`."""

Greet = Callable[[Ask, Any], Coroutine[Any, Any, Any]]
"""A function that asks the server something on one connection; it is given what it gave for that
connection before, or None. Raises `Unreachable` or `Broken`."""


class Client:
    """Sends requests to one upstream."""

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        keeps_host: bool = False,
        greet: Greet | None = None,
        is_lasting: Callable[[Any], bool] = lambda said: True,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        """`url` is scheme://host[:port]. `tls` is how an https server is spoken to, if not with the
        system's certificates. `keeps_host` says that upstream is told the host that the client has
        asked for. `greet` asks the server something on each connection, behind the first answer,
        and behind later ones unless what the server has said `is_lasting`."""
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or PORTS[parts.scheme]
        host = f"[{self._host}]" if ":" in self._host else self._host
        is_default = self._port == PORTS[parts.scheme]
        self.authority = (host if is_default else f"{host}:{self._port}").encode()
        is_https = parts.scheme == "https"
        self._ssl = (tls or ssl.create_default_context()) if is_https else None
        self._keeps_host = keeps_host
        self._greet = greet
        self._is_lasting = is_lasting
        self._idle_seconds = idle_seconds
        self._greeting: dict[asyncio.Task[None], Connection] = {}
        self._idle: list[Connection] = []
        self._is_closed = False

    @asynccontextmanager
    async def open(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AsyncIterator[Response]:
        """Sends a request, with the client's own header fields, and gives the response as soon as
        its head has come. Raises `Unreachable` or `Broken`."""
        request = self._request(method, path, headers, body)
        connection, response = await self._exchange(method, request)
        try:
            yield response
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)

    async def ask(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> WholeResponse:
        """Sends a request, and gives its whole answer. Raises `Unreachable` or `Broken`."""
        async with self.open(method, path, headers, body) as response:
            return await response.whole()

    def close(self) -> None:
        """Closes the idle connections at once, and those in use when they are done."""
        self._is_closed = True
        for task, connection in tuple(self._greeting.items()):
            task.cancel()
            connection.close()
        while self._idle:
            self._idle.pop().close()

    def _request(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        """A request in bytes. Raises `Broken` for one that cannot be sent."""
        if not _TARGET.fullmatch(path):
            raise Broken("the request cannot be sent: its target has more than visible characters")
        dropped = _NOT_PASSED_ON | named_in_connection(headers)
        hosts = [value for name, value in headers if name.lower() == b"host"]
        host = hosts[0] if self._keeps_host and hosts else self.authority
        lines = [b"%b %b HTTP/1.1" % (method.encode(), path.encode()), b"Host: " + host]
        lines += [b"%b: %b" % field for field in headers if field[0].lower() not in dropped]
        lines.append(b"Accept-Encoding: identity")  # it is read as it passes
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(b"Content-Length: %d" % len(body))
        if not all(map(FIELD.fullmatch, lines[1:])):
            raise Broken("the request cannot be sent: a header field cannot be written")
        return b"%b\r\n\r\n%b" % (b"\r\n".join(lines), body)

    async def _exchange(self, method: str, request: bytes) -> tuple[Connection, Response]:
        """Sends a request, and waits for the head of its answer."""
        connection = self._take() or await self._connect()
        try:
            return connection, await connection.exchange(method, request)
        except Broken:
            # The server may hang up on a kept connection at the very moment at which it is used. A
            # request without any answer is sent once more, and not on another kept connection,
            # which may be as dead.
            if connection.is_fresh or connection.has_begun:
                raise
        connection = await self._connect()
        return connection, await connection.exchange(method, request)

    def _take(self) -> Connection | None:
        """The idle connection that was used last, of those that still can be used."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable(self._idle_seconds):
                return connection
            connection.close()
        return None

    def _give_back(self, connection: Connection) -> None:
        if not connection.finish() or self._is_closed:
            connection.close()
        elif self._greet and not connection.greeting.done():
            task = asyncio.ensure_future(self._meet(connection, self._greet))
            self._greeting[task] = connection
            task.add_done_callback(self._greeting.pop)
        else:
            self._keep(connection)
        # The oldest come first. What a burst of requests has left would else never be closed.
        while self._idle and not self._idle[0].is_usable(self._idle_seconds):
            self._idle.pop(0).close()

    async def _meet(self, connection: Connection, greet: Greet) -> None:
        """Greets the server, and keeps the connection if it can be used after that."""

        async def ask(method: str, path: str, headers: Headers) -> WholeResponse:
            request = self._request(method, path, headers, b"")
            whole = await (await connection.exchange(method, request)).whole()
            if not connection.finish():
                raise Broken("it does not keep the connection")
            return whole

        said = None
        try:
            with suppress(Unreachable, Broken):
                said = await greet(ask, connection.former)
        finally:  # answers wait for the greeting, whatever comes of it
            connection.greeted(said)
            if said is not None and connection.is_usable(self._idle_seconds):
                self._keep(connection)
            else:
                connection.close()

    def _keep(self, connection: Connection) -> None:
        if self._is_closed or len(self._idle) >= MAX_IDLE:
            connection.close()
            return
        if self._greet and not self._is_lasting(connection.greeting.result()):
            connection.former = connection.greeting.result()
            connection.greeting = asyncio.get_running_loop().create_future()
        self._idle.append(connection)

    async def _connect(self) -> Connection:
        while True:
            await descriptors.for_upstream()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    _, connection = await asyncio.get_running_loop().create_connection(
                        Connection, self._host, self._port, ssl=self._ssl
                    )
            except TimeoutError:
                raise Unreachable(f"no connection within {CONNECT_SECONDS:.0f} s") from None
            except OSError as e:
                if e.errno in descriptors.SHORT:  # others have taken the descriptor
                    await asyncio.sleep(descriptors.WAIT_SECONDS)
                    continue
                raise Unreachable(what_failed(e)) from e
            return connection
