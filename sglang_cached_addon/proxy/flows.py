"""Flows of the addon, and what answers them piece by piece.

Keeps what lives as long as a flow, or as its client: what is known of a request under way, what
plays upstream's part for it, and what waits on a client's behalf. Decides nothing: `service` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionHandler

from sglang_cached_addon.core.outcome import Outcome
from sglang_cached_addon.proxy.feed import Feed, FeedAnswer
from sglang_cached_addon.service.asking import Ask, Streamed
from sglang_cached_addon.upstream import Update

HandlerOf = Callable[[Client], ConnectionHandler | None]
"""Finds what serves a client's connection."""


@dataclass(slots=True)
class Live:
    """A request under way."""

    started: float
    """Monotonic, in seconds."""
    outcome: Outcome | None = None
    """None until it is decided."""
    ask: Ask | None = None
    """If it is for samples."""
    streamed: Streamed | None = None
    """What answers it, in pieces."""
    update: Update | None = None
    """What it is as a request that changes the model, if it is one."""
    aborted: Callable[[bool], None] | None = None
    """To be called when upstream has agreed to an abort."""


class Streaming:
    """The answers in pieces of all clients, and what waits for them."""

    def __init__(self, handler_of: HandlerOf) -> None:
        self._handler_of = handler_of
        self._able: WeakSet[Client] = WeakSet()
        self._answers: WeakKeyDictionary[http.HTTPFlow, FeedAnswer] = WeakKeyDictionary()
        self._waiting: dict[Client, set[asyncio.Task[Any]]] = {}

    # Clients

    def enable(self, client: Client) -> None:
        """A client behind a `Gateway`, which alone can be answered piece by piece."""
        self._able.add(client)

    def can_answer(self, flow: http.HTTPFlow) -> bool:
        """Whether a flow can be answered piece by piece: HTTP/1.0 knows no chunks."""
        return flow.client_conn in self._able and flow.request.http_version == "HTTP/1.1"

    @contextmanager
    def waiting(self, client: Client) -> Iterator[None]:
        """What the current task waits for is of no use without the client: when that leaves, the
        task is cancelled."""
        task = asyncio.current_task()
        assert task
        tasks = self._waiting.setdefault(client, set())
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks and self._waiting.get(client) is tasks:
                del self._waiting[client]

    def left(self, client: Client) -> None:
        """A client is gone."""
        for task in self._waiting.pop(client, ()):
            task.cancel()

    # Answers

    def open_feed(self, flow: http.HTTPFlow, context: Context) -> Feed | None:
        """What plays upstream's part for a flow, if something does."""
        answer = self._answers.get(flow)
        handler = self._handler_of(flow.client_conn)
        return Feed(context, answer, handler) if answer and handler else None

    def is_fed(self, flow: http.HTTPFlow) -> bool:
        return flow in self._answers

    def give(
        self,
        flow: http.HTTPFlow,
        head: http.Response,
        pieces: AsyncIterator[list[bytes]],
        ended: Callable[[bool], object],
    ) -> None:
        """Answers with a stream. `ended` is told whether all of it was given."""
        self._answers[flow] = FeedAnswer(head, pieces, ended)

    def forget(self, flow: http.HTTPFlow) -> None:
        """Lets go of what a flow that is over was answered with: whole streams hang on it."""
        self._answers.pop(flow, None)
