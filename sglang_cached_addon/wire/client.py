"""HTTP/1.1 to one upstream, on connections that are kept.

Nothing here waits for an answer with a limit: who asks sets one, if any. Who is cancelled, or
leaves before the end of a body, has the connection closed, which is how SGLang learns that
nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from sglang_cached_addon.wire import descriptors, outgoing
from sglang_cached_addon.wire.connection import (
    Broken,
    Connection,
    Headers,
    Response,
    WholeResponse,
)
from sglang_cached_addon.wire.failures import what_failed
from sglang_cached_addon.wire.location import PORTS
from sglang_cached_addon.wire.observing import Observer
from sglang_cached_addon.wire.outgoing import Request

CONNECT_SECONDS = 10.0
"""How many seconds it may take to connect."""

IDLE_SECONDS = 4.0
"""For how many seconds a connection is kept for the next request; uvicorn hangs up after 5."""

MAX_IDLE = 256
"""How many idle connections are kept."""


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
        observer: Observer | None = None,
    ) -> None:
        """`url` is scheme://host[:port]. `tls` is how an https server is spoken to, if not with the
        system's certificates. `keeps_host` says that upstream is told the host that the client has
        asked for. `greet` asks the server something on each connection, behind the first answer,
        and behind later ones unless what the server has said `is_lasting`. The `observer` sees what
        is asked with `ask`, and to greet."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        self.address = (host, port)
        written = f"[{host}]" if ":" in host else host
        is_default = port == PORTS[parts.scheme]
        self.authority = (written if is_default else f"{written}:{port}").encode()
        self.is_https = parts.scheme == "https"
        self._ssl = (tls or ssl.create_default_context()) if self.is_https else None
        self._observer = observer
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
        request = outgoing.written(self.request(Request(method, path, headers, body)))
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

        async def whole() -> WholeResponse:
            async with self.open(method, path, headers, body) as response:
                return await response.whole()

        return await self._seen(Request(method, path, headers, body), whole())

    async def _seen(
        self, asked: Request, coming: Coroutine[Any, Any, WholeResponse]
    ) -> WholeResponse:
        """The answer that comes, which the observer may see."""
        observer = self._observer
        if observer and observer.sees_questions:
            return await observer.question(self, asked, coming)
        return await coming

    def close(self) -> None:
        """Closes the idle connections at once, and those in use when they are done."""
        self._is_closed = True
        for task, connection in tuple(self._greeting.items()):
            task.cancel()
            connection.close()
        while self._idle:
            self._idle.pop().close()

    def request(self, asked: Request) -> Request:
        """A request with all of its header fields, as it goes out."""
        return outgoing.complete(asked, self.authority, keeps_host=self._keeps_host)

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
            asked = Request(method, path, headers, b"")
            return await self._seen(asked, whole(asked))

        async def whole(asked: Request) -> WholeResponse:
            request = outgoing.written(self.request(asked))
            answer = await (await connection.exchange(asked.method, request)).whole()
            if not connection.finish():
                raise Broken("it does not keep the connection")
            return answer

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
                        Connection, *self.address, ssl=self._ssl
                    )
            except TimeoutError:
                raise Unreachable(f"no connection within {CONNECT_SECONDS:.0f} s") from None
            except OSError as e:
                if e.errno in descriptors.SHORT:  # others have taken the descriptor
                    await asyncio.sleep(descriptors.WAIT_SECONDS)
                    continue
                raise Unreachable(what_failed(e)) from e
            return connection
