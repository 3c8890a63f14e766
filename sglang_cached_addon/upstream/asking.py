"""What upstream says when it is asked who it is.

Asks its own routes (`/model_info`, `/server_info`, `/v1/models`), on one connection of its own
if that is not hung up on: that it lives on shows that the process behind it does. Keeps nothing
but that connection, which route upstream has, and the words in which it last named itself.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, NamedTuple

import orjson

from sglang_cached_addon.core import identity, neighbours
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.upstream.sightings import Sightings
from sglang_cached_addon.wire.client import Ask, Client, Unreachable
from sglang_cached_addon.wire.connection import Broken, Headers, WholeResponse
from sglang_cached_addon.wire.observing import Observer

# Routes that say who answers, in the order in which they are tried. The second is what older
# versions have, the third what anything that speaks OpenAI's API has.
_INFO_PATHS = ("/model_info", "/get_model_info", "/v1/models")
_SERVER_PATHS = {"/model_info": "/server_info", "/get_model_info": "/get_server_info"}

PATIENCE_SECONDS = 30.0
"""How long upstream may take for a round of questions."""

THOROUGH_SECONDS = 0.1
"""At most so often another connection than the own one is asked everything."""

REFUSALS = (401, 403)
"""Statuses that refuse a credential."""

_TROUBLE = (408, 425, 429)
"""Statuses below 500 that say nothing but that upstream is busy."""

_BUSY = (*_TROUBLE, 502, 503, 504)
"""Statuses after which a route that not all servers have may well be there."""


class Words(NamedTuple):
    """The words in which upstream has named itself."""

    connection: int
    """The number of the connection that they came on."""
    body: bytes
    """The body of its first answer."""
    identity: Identity
    """What all its answers come to."""


class Verdict(Enum):
    """What came of asking upstream who it is."""

    KNOWN = "it has named its model"
    REFUSED = "it does not tell this credential: 401 or 403"
    NAMELESS = "it has no route that tells, or the route names no model"
    TROUBLED = "it answers with trouble of its own: 5xx, 429"
    SLOW = "it has not answered yet"
    DOWN = "it cannot be reached, or speaks no HTTP"


@dataclass(frozen=True, slots=True)
class Said:
    """One round of questions."""

    verdict: Verdict
    identity: Identity | None = None
    """The identity that upstream has named; None for every other verdict than KNOWN."""
    asked_at: float = 0.0
    """When the round began: a monotonic time in seconds."""


class Questions:
    """Asks upstream who it is."""

    def __init__(
        self, url: str, tls: ssl.SSLContext | None, observer: Observer | None = None
    ) -> None:
        self.sightings = Sightings()
        self._client = Client(url, tls=tls, observer=observer)
        self._lock = asyncio.Lock()
        self._info_path: str | None = None
        self._words: Words | None = None
        self._absent: set[str] = set()
        """Routes of `neighbours` that the server does not have."""
        self._forgets = 0
        self._asked_at = float("-inf")
        """When another connection was last asked everything: a monotonic time in seconds."""

    async def round(self, headers: Headers) -> Said:
        """Asks everything, with the header fields of a client's credential."""
        async with self._lock:
            return await self._round(headers)

    async def again(self, headers: Headers) -> Said:
        """Asks one thing: on the connection on which upstream has named itself, an equal answer
        shows that it is what it was. Where that does not come, asks everything."""
        async with self._lock:
            if not (self._words and self._info_path in _SERVER_PATHS):
                return await self._round(headers)
            words, is_other = self._words, False

            async def ask() -> Said:
                nonlocal is_other
                began, path = time.monotonic(), self._info_path or ""
                answer = await self._client.ask("GET", path, headers)
                is_same = (answer.status, answer.connection, answer.body) == (200, *words[:2])
                is_other = not is_same and answer.status == 200
                return Said(Verdict.KNOWN if is_same else Verdict.TROUBLED, words.identity, began)

            said = await _bounded(ask())
            if said.verdict is Verdict.TROUBLED:
                said = await self._round(headers)
            latest: Words | None = self._words
            is_back = said.verdict is Verdict.KNOWN and latest and latest[:2] == words[:2]
            if is_other and is_back:
                self.sightings.take_turns(time.monotonic())
            return said

    async def _round(self, headers: Headers) -> Said:
        async def ask() -> Said:
            forgets = self._forgets
            said, words = await self._ask(self._client.ask, headers)
            if self._words and (not words or words.connection != self._words.connection):
                self._absent.clear()  # another process may have them
            if words:
                self.sightings.saw(words.connection, words.identity, said.asked_at)
            if forgets == self._forgets:  # else these may be former ones
                self._words = words or self._words
            return said

        return await _bounded(ask())

    async def on(self, ask: Ask, headers: Headers, *, is_new: bool) -> Said:
        """Asks on another connection than the own one. Raises `Unreachable` or `Broken`.

        On a new connection one answer is enough that equals the one on the own connection, unless
        everything was asked there long ago: that is cheap for upstream, and a process with other
        settings is noticed soon.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                now = time.monotonic()
                is_recent = now - self._asked_at < THOROUGH_SECONDS
                words, path = self._words, self._info_path
                if is_new and is_recent and words and path:
                    answer = await ask("GET", path, headers)
                    # Forgotten or named anew meanwhile: the words may be former ones.
                    if (answer.status, answer.body) == (200, words.body) and words is self._words:
                        return Said(Verdict.KNOWN, words.identity, now)
                self._asked_at = now
                return (await self._ask(ask, headers))[0]
        except TimeoutError:
            return Said(Verdict.SLOW)

    @property
    def connection(self) -> int:
        """The number of the connection on which upstream has named itself; 0 if there is none."""
        return self._words.connection if self._words else 0

    def forget(self) -> None:
        """Upstream may have another name by now."""
        self._words = None
        self._absent.clear()
        self._forgets += 1

    async def _ask(self, ask: Ask, headers: Headers) -> tuple[Said, Words | None]:
        began = time.monotonic()
        for path in (self._info_path,) if self._info_path else _INFO_PATHS:
            answer = await ask("GET", path, headers)
            if answer.status != 404:
                break
        else:
            self._info_path = None
            return Said(Verdict.NAMELESS), None
        if answer.status != 200:
            return Said(_verdict(answer.status)), None
        self._info_path = path
        server = None
        if path in _SERVER_PATHS:
            more = await ask("GET", _SERVER_PATHS[path], headers)
            if more.status == 200:
                server = _document(more)
            elif more.status not in (404, *REFUSALS):
                return Said(_verdict(more.status)), None
            info, models = _document(answer), None
        else:
            info, models = None, _document(answer)
        further: dict[str, Any] = {}
        for route in neighbours.ROUTES.get(path, ()):
            if route in self._absent:
                continue
            more = await ask("GET", route, headers)
            if more.status == 200:
                further[route] = _document(more)
            elif more.status in _BUSY:
                return Said(_verdict(more.status)), None
            else:
                self._absent.add(route)
        found = identity.identify(info, server, models, further, _date(answer))
        if found is None:
            return Said(Verdict.NAMELESS), None
        words = Words(answer.connection, answer.body, found)
        return Said(Verdict.KNOWN, found, began), words

    def close(self) -> None:
        """Hangs up."""
        self._client.close()


async def _bounded(asking: Awaitable[Said]) -> Said:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asking
    except (Unreachable, Broken):
        return Said(Verdict.DOWN)
    except TimeoutError:
        return Said(Verdict.SLOW)


def _verdict(status: int) -> Verdict:
    """What a status other than 200 says of who upstream is."""
    if status in REFUSALS:
        return Verdict.REFUSED
    return Verdict.TROUBLED if status >= 500 or status in _TROUBLE else Verdict.NAMELESS


def _date(answer: WholeResponse) -> float | None:
    """The Unix time of an answer by its server's own clock, if it tells that."""
    fields = {name.lower(): value for name, value in answer.headers}
    try:
        return parsedate_to_datetime(fields[b"date"].decode("latin-1")).timestamp()
    except (KeyError, ValueError):
        return None


def _document(answer: WholeResponse) -> Any:
    try:
        return orjson.loads(answer.body)
    except ValueError:
        return None
