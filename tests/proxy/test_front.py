"""What mitmproxy's layers are told of clients and flows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from mitmproxy import http
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.options import Options
from mitmproxy.proxy.context import Context
from mitmproxy.test import taddons, tflow

from sglang_cached_addon.core.request_ids import Ids
from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.feed import FeedAnswer
from sglang_cached_addon.proxy.flows import Flows
from sglang_cached_addon.proxy.front import Front


def test_who_is_answered_in_pieces() -> None:
    """Chunks are for clients of HTTP/1.1 whose layers can send them."""
    front, flow = Front(Desk(), Flows(Ids("x"))), tflow.tflow()
    assert not front.is_chunkable(flow)
    front.clients.add(flow.client_conn)
    for version, can in (("HTTP/1.1", True), ("HTTP/1.0", False), ("HTTP/2.0", False)):
        flow.request.http_version = version
        assert front.is_chunkable(flow) is can


async def no_pieces() -> AsyncIterator[list[bytes]]:
    yield []


def test_feeds() -> None:
    """A flow gets its own stream as long as its client is there; others go upstream."""
    flows = Flows(Ids("x"))
    front = Front(Desk(), flows)
    fed, left, other, over = (tflow.tflow() for _ in range(4))
    for flow in (fed, left, other, over):
        flows.begin(flow)
    for flow in (fed, left, over):
        live = flows.get(flow)
        assert live
        live.feed = FeedAnswer(http.Response.make(), no_pieces(), bool, bool)
    flows.end(over)

    async def run() -> list[bool]:
        server = Proxyserver()
        with taddons.context(server, loadcore=False):
            handler: Any = object()
            server.connections = {flow.client_conn.id: handler for flow in (fed, other, over)}
            context = Context(tflow.tclient_conn(), Options())
            return [bool(front.open_feed(flow, context)) for flow in (fed, left, other, over)]

    assert asyncio.run(run()) == [True, False, False, False]
