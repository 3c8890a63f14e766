"""A feed in upstream's place, as mitmproxy's layers see it, and what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._events import (
    RequestEndOfMessage,
    RequestProtocolError,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.test import tflow

from sglang_cached_addon.proxy.feed import Feed, FeedAnswer
from sglang_cached_addon.service.stream import Cut
from tests.tables import each

STREAM = 7


class Handler:
    """What a feed needs of mitmproxy's connection handler."""

    def __init__(self) -> None:
        self.feed: Feed | None = None
        self.heard: list[Any] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def server_event(self, event: events.Event) -> None:
        assert self.feed
        self.heard += received(self.feed.handle_event(event))

    async def drain_writers(self) -> None:
        await self.may_go_on.wait()


def received(done: Any) -> list[Any]:
    """The HTTP events that a layer hands on."""
    return [c.event for c in done if not isinstance(c, commands.Log)]


def made(pieces: AsyncIterator[list[bytes]], ended: list[bool]) -> tuple[Feed, Handler]:
    handler = Handler()
    context = Context(tflow.tclient_conn(), Options())
    answer = FeedAnswer(http.Response.make(200), pieces, bool, ended.append)
    feed = handler.feed = Feed(context, answer, handler)  # type: ignore[arg-type]
    list(feed.handle_event(events.Start()))
    return feed, handler


async def said(*batches: list[bytes], error: Exception | None = None) -> AsyncIterator[list[bytes]]:
    for batch in batches:
        yield batch
    if error:
        raise error


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@each("error", [None, Cut(), RuntimeError("a fault of ours")])
def test_pieces(error: Exception | None, caplog: pytest.LogCaptureFixture) -> None:
    """A head, each piece by itself, and the end that there was."""

    async def run() -> None:
        ended: list[bool] = []
        feed, handler = made(said([b"a", b"b"], [b"c"], error=error), ended)
        (head,) = received(feed.handle_event(RequestEndOfMessage(STREAM)))
        assert isinstance(head, ResponseHeaders)
        assert (head.stream_id, head.response.status_code, head.end_stream) == (STREAM, 200, False)
        # What has no address is never taken for a server that another request can use.
        assert (feed.conn.connected, feed.conn.address) == (True, None)
        await settled()
        *data, end = handler.heard
        assert [(type(e), e.stream_id, e.data) for e in data] == [
            (ResponseData, STREAM, piece) for piece in (b"a", b"b", b"c")
        ]
        assert isinstance(end, ResponseProtocolError if error else ResponseEndOfMessage)
        assert feed.is_over
        assert ended == [not error]

    asyncio.run(run())
    assert ("a fault of ours" in caplog.text) == isinstance(error, RuntimeError)


def test_slow_client() -> None:
    """No more is fetched than the client takes."""

    async def run() -> None:
        feed, handler = made(said([b"a"], [b"b"]), [])
        handler.may_go_on.clear()
        list(feed.handle_event(RequestEndOfMessage(STREAM)))
        await settled()
        assert [event.data for event in handler.heard] == [b"a"]
        handler.may_go_on.set()
        await settled()
        assert len(handler.heard) == 3

    asyncio.run(run())


def test_client_leaves() -> None:
    """A client that left is told nothing more, and what it read is told so."""

    async def run() -> None:
        ended: list[bool] = []
        feed, handler = made(said([b"a"], [b"b"]), ended)
        handler.may_go_on.clear()
        list(feed.handle_event(RequestEndOfMessage(STREAM)))
        await settled()
        error = RequestProtocolError(STREAM, "left", RequestProtocolError.code)
        assert not received(feed.handle_event(error))
        handler.may_go_on.set()
        await settled()
        assert feed.is_over
        assert ended == [False]
        assert len(handler.heard) == 1

    asyncio.run(run())
