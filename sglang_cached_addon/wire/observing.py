"""How others look on while upstream is asked: what they are shown, and what they may do to it.

Protocols only. Where nobody looks on, a `Client` itself sends the requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from sglang_cached_addon.wire.connection import Broken, Headers, Response, WholeResponse
from sglang_cached_addon.wire.outgoing import Request


class Killed(Broken):
    """Somebody who looks on has ended a request, or refused its answer."""


class Answer(Protocol):
    """What a request was answered with, whose body comes in pieces."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields, without those of the connection."""

    @property
    def greeting(self) -> asyncio.Future[Any] | None:
        """As `Response` has it."""

    @property
    def sent(self) -> Headers | None:
        """The header fields that were sent instead of those that were given; None where it is these
        that were sent."""

    @property
    def is_altered(self) -> bool:
        """Something else was asked, or the status or the body is not upstream's own."""

    @property
    def held(self) -> float:
        """For how many seconds others have kept it from going on."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `Broken`."""


class Sender(Protocol):
    """What sends requests, as `Client` does."""

    def open(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AbstractAsyncContextManager[Answer]:
        """As `Client.open`. Raises `Killed`, too."""


class Wrapped(Protocol):
    """What an observer shows of a client."""

    def open(
        self, method: str, path: str, headers: Headers, body: bytes = b""
    ) -> AbstractAsyncContextManager[Response]:
        """As `Client.open`."""

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port that it sends to."""

    @property
    def is_https(self) -> bool: ...

    def request(self, asked: Request) -> Request:
        """A request with all of its header fields, as it goes out."""


class Observer(Protocol):
    """Who looks on."""

    @property
    def is_there(self) -> bool:
        """Somebody looks on now."""

    def around(self, client: Wrapped, caption: str) -> Sender:
        """What sends a request in a client's place, and shows it. `caption` says what for."""

    @property
    def sees_questions(self) -> bool:
        """Somebody looks on now, at what upstream is asked besides the calls, too."""

    async def question(
        self, client: Wrapped, asked: Request, coming: Awaitable[WholeResponse]
    ) -> WholeResponse:
        """Gives the answer that comes, and shows it. Nobody can change it."""
