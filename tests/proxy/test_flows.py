"""What the addon keeps of flows and their clients: who is waited for, and what is let go of."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.test import tflow

from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.proxy.feed import Feed
from sglang_cached_addon.proxy.flows import Streaming
from sglang_cached_addon.service.asking import Streamed

EVENTS = [b"data: a\n\n", b"data: b\n\n", b"data: [DONE]\n\n"]
MISS = Outcome(Kind.MISS)


def streaming(handler: Any = None) -> Streaming:
    return Streaming(lambda client: handler)


def fetched(pieces: AsyncIterator[list[bytes]], ended: list[bool]) -> Streamed:
    """One that is being fetched."""

    def end(is_complete: bool) -> Outcome:
        ended.append(is_complete)
        return MISS

    return Streamed((), pieces, MISS, end, ExitStack())


async def said(*batches: list[bytes]) -> AsyncIterator[list[bytes]]:
    for batch in batches:
        yield batch


async def collected(feed: Feed) -> list[list[bytes]]:
    """What a feed would send."""
    return [pieces async for pieces in feed._pump._answer.pieces]


def context() -> Context:
    return Context(tflow.tclient_conn(), Options())


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("is_enabled", "version", "can"),
    [
        (True, "HTTP/1.1", True),
        (True, "HTTP/1.0", False),
        (False, "HTTP/1.1", False),
        (True, "HTTP/2.0", False),
    ],
)
def test_who_can_be_answered(is_enabled: bool, version: str, can: bool) -> None:
    """A client would get chunks that it cannot read, or an answer that nobody sends."""
    streams, flow = streaming(), tflow.tflow()
    flow.request.http_version = version
    if is_enabled:
        streams.enable(flow.client_conn)
    assert streams.can_answer(flow) is can


def test_a_client_leaves() -> None:
    """What waits for a client who is gone would wait on; or that of others end, too."""

    async def run() -> None:
        streams, never = streaming(), asyncio.Event()
        mine, other = tflow.tclient_conn(), tflow.tclient_conn()

        async def wait(client: Client) -> None:
            with streams.waiting(client):
                await never.wait()

        tasks = [asyncio.ensure_future(wait(client)) for client in (mine, mine, other)]
        await settled()
        streams.left(mine)
        streams.left(mine)
        await settled()
        assert [task.cancelled() for task in tasks] == [True, True, False]
        never.set()
        await tasks[2]
        streams.left(other)
        assert not streams._waiting

    asyncio.run(run())


def test_done_is_forgotten() -> None:
    """A client that stays would hold each task that ever was, or its leaving end what goes on."""

    async def run() -> None:
        streams, client = streaming(), tflow.tclient_conn()
        for error in (None, ValueError):
            with suppress(ValueError), streams.waiting(client):
                if error:
                    raise error
            assert not streams._waiting
            streams.left(client)
            await settled()

    asyncio.run(run())


def test_feeds() -> None:
    """A flow would be answered by upstream, too, or with another's stream."""

    async def run() -> None:
        streams = streaming(handler=object())
        ended: list[bool] = []
        flows = [tflow.tflow() for _ in range(3)]
        head = http.Response.make()
        one = fetched(said([b"a"], [b"b", b"c"]), ended)
        streams.give(flows[0], head, one.pieces, one.close)
        streams.give(flows[1], head, said(EVENTS), ended.append)
        assert [streams.is_fed(flow) for flow in flows] == [True, True, False]
        feeds = [streams.open_feed(flow, context()) for flow in flows]
        assert feeds[2] is None
        assert feeds[0]
        assert feeds[1]
        assert await collected(feeds[0]) == [[b"a"], [b"b", b"c"]]
        assert await collected(feeds[1]) == [EVENTS]
        feeds[0]._pump._answer.ended(True)
        feeds[0]._pump._answer.ended(False)
        assert ended == [True]

    asyncio.run(run())


def test_no_handler() -> None:
    """A client that is gone by now would have a stream pumped to it."""
    streams, flow = streaming(), tflow.tflow()
    streams.give(flow, http.Response.make(), said(EVENTS), bool)
    assert streams.open_feed(flow, context()) is None


def test_nothing_is_held() -> None:
    """A client that stays connected would hold all that it was ever streamed."""

    async def run() -> None:
        streams = streaming(handler=object())
        given, replayed = tflow.tflow(), tflow.tflow()
        streamed = fetched(said(EVENTS), [])
        streams.give(given, http.Response.make(), streamed.pieces, streamed.close)
        streams.give(replayed, http.Response.make(), said(EVENTS), bool)
        held = weakref.ref(streamed)
        for flow in (given, replayed, tflow.tflow()):
            streams.forget(flow)
            assert not streams.is_fed(flow)
        del streamed
        gc.collect()
        assert held() is None
        # A flow that nobody forgets takes its answer along.
        streamed, flow = fetched(said(EVENTS), []), tflow.tflow()
        streams.give(flow, http.Response.make(), streamed.pieces, streamed.close)
        held = weakref.ref(streamed)
        del streamed, flow
        gc.collect()
        assert held() is None

    asyncio.run(run())
