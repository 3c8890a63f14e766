"""Streamed answers of the addon: recorded as they pass, replayed, and read along with.

The part of the addon that keeps what lives as long as a stream: who leads one, who follows,
and what answers a flow in upstream's place. Decides nothing: `exchange` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from weakref import WeakKeyDictionary, WeakSet

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.server import ConnectionHandler

from sglang_cached_addon import wire
from sglang_cached_addon.exchange import Exchange, Fetch, Follow, Hit, Lead, Live
from sglang_cached_addon.feed import Answer, Feed
from sglang_cached_addon.inflight import Follower
from sglang_cached_addon.policy import Reason

logger = logging.getLogger("sglang_cached_addon")

HandlerOf = Callable[[Client], ConnectionHandler | None]
"""Finds what serves a client's connection."""


class Streaming:
    """The streams of all clients."""

    def __init__(self, handler_of: HandlerOf) -> None:
        self._handler_of = handler_of
        self._able: WeakSet[Client] = WeakSet()
        self._answers: WeakKeyDictionary[http.HTTPFlow, Answer] = WeakKeyDictionary()
        self._leads: WeakKeyDictionary[Client, Lead] = WeakKeyDictionary()
        self._followers: WeakKeyDictionary[Client, set[Follower]] = WeakKeyDictionary()

    # Clients

    def enable(self, client: Client) -> None:
        """A client behind a `Gateway`, which alone can be answered piece by piece."""
        self._able.add(client)

    def can_answer(self, flow: http.HTTPFlow) -> bool:
        """Whether a flow can be answered piece by piece: HTTP/1.0 knows no chunks."""
        return flow.client_conn in self._able and flow.request.http_version == "HTTP/1.1"

    def left(self, client: Client) -> Awaitable[None] | None:
        """Ends what a client was part of. To be awaited before its upstream is hung up on, which
        others may still listen to."""
        for follower in self._followers.pop(client, ()):
            follower.leave()
        lead = self._leads.pop(client, None)
        return lead.stream.unattended() if lead else None

    def forget(self, flow: http.HTTPFlow) -> None:
        """Lets go of what a flow that is over was answered with: whole streams hang on it."""
        self._answers.pop(flow, None)
        self._leads.pop(flow.client_conn, None)

    # Leaders

    def lead(self, flow: http.HTTPFlow, lead: Lead) -> None:
        """A flow whose upstream answer others may follow."""
        if flow.client_conn in self._able:
            self._leads[flow.client_conn] = lead

    def outlives(self, flow: http.HTTPFlow) -> bool:
        """Whether the flow goes on though its client has left."""
        lead = self._leads.get(flow.client_conn)
        return lead is not None and lead.stream.is_live and lead.stream.followers > 0

    def tee(
        self, exchange: Exchange, fetch: Fetch, live: Live
    ) -> Callable[[bytes], bytes | list[bytes]]:
        """Records what passes from upstream to a client; gives what that client gets."""
        is_partial, is_broken = fetch.is_partial, False

        def take(data: bytes) -> bytes | list[bytes]:
            nonlocal is_broken
            if live.fetch is None:
                # It is done with. What upstream numbers anew for a part of an answer would be
                # taken for the stored part, so that of a broken one there is no more.
                return b"" if is_broken and is_partial else data
            shown: bytes | list[bytes] = b"" if is_partial else data
            try:
                shown = exchange.relay(fetch, data)
                if fetch.lead and fetch.lead.relay.is_done:
                    live.fetch = None
                    seconds = time.monotonic() - live.started
                    live.outcome = exchange.complete_stream(fetch, now=time.time(), seconds=seconds)
            except Exception:
                # mitmproxy would drop the connection, and what is relayed matters more.
                logger.exception("sglang-cached: a stream is not recorded any more")
                live.outcome = exchange.fail(fetch, Reason.UNREADABLE, 200).outcome
                live.fetch, is_broken = None, True
            return shown

        return take

    # Answers of ours

    def open_feed(self, flow: http.HTTPFlow, context: Context) -> Feed | None:
        """What plays upstream's part for a flow, if something does."""
        answer = self._answers.get(flow)
        handler = self._handler_of(flow.client_conn)
        return Feed(context, answer, handler) if answer and handler else None

    def is_fed(self, flow: http.HTTPFlow) -> bool:
        return flow in self._answers

    def replay(self, flow: http.HTTPFlow, head: http.Response, hit: Hit, rate: float) -> None:
        """Answers with a stored stream; `rate` is in tokens a second, 0 for at once."""
        pieces = _paced(wire.unchunked(hit.body), hit.longest / rate if rate else 0.0)
        self._answers[flow] = Answer(head, pieces, lambda is_complete: None)

    def follow(
        self, flow: http.HTTPFlow, head: http.Response, follow: Follow, exchange: Exchange
    ) -> None:
        """Answers with a stream that another request fetches."""

        client = flow.client_conn  # the flow itself would be held by what it is the key of

        def ended(is_complete: bool) -> None:
            self.leave(client, follow.follower)
            if is_complete:
                exchange.followed(follow)

        self._answers[flow] = Answer(head, _shown(follow), ended)

    async def opened(self, flow: http.HTTPFlow, follow: Follow) -> bool:
        """Whether there is a stream to follow, once that is known; False too where the client
        does not wait for it."""
        self._followers.setdefault(flow.client_conn, set()).add(follow.follower)
        if await follow.follower.opened():
            return True
        self.leave(flow.client_conn, follow.follower)
        return False

    def leave(self, client: Client, follower: Follower) -> None:
        """A follower has what it wanted, or does not want it any more."""
        follower.leave()
        if followers := self._followers.get(client):
            followers.discard(follower)


async def _shown(follow: Follow) -> AsyncIterator[list[bytes]]:
    async for events in follow.follower.read():
        yield follow.view.show(events)


async def _paced(events: list[bytes], seconds: float) -> AsyncIterator[list[bytes]]:
    """The events, evenly over a time."""
    if not seconds:
        yield events
        return
    began = time.monotonic()
    for k, event in enumerate(events, 1):
        yield [event]
        due = began + seconds * k / len(events)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
