"""Requests to upstream and its answers as flows have them."""

from __future__ import annotations

import asyncio

from mitmproxy.flow import Error
from mitmproxy.http import HTTPFlow

from sglang_cached_addon.proxy import fetch_messages
from sglang_cached_addon.wire.client import Client
from sglang_cached_addon.wire.outgoing import Request
from tests.tables import each

ASKED = Request("POST", "/generate", [(b"Content-Type", b"application/json")], b"{}")


def flow_to(url: str) -> tuple[Client, HTTPFlow]:
    client = Client(url)
    return client, fetch_messages.flow_of(client, client.request(ASKED), "why", ":link:")


@each("url", ["http://127.0.0.1:1", "https://sglang.example"])
def test_there_and_back(url: str) -> None:
    """What a flow says is what goes out, and it can be copied, as mitmproxy does."""
    client, flow = flow_to(url)
    assert flow.request.url == f"{url}/generate"
    assert fetch_messages.request_of(flow, client) == client.request(ASKED)
    assert (flow.comment, flow.marked, flow.killable) == ("why", ":link:", True)
    copy = flow.copy()
    assert copy.request.content == b"{}"
    assert not copy.killable


def test_changed() -> None:
    """What is changed of a flow goes out, and the flow says so; where it goes is not to change."""
    client, flow = flow_to("http://127.0.0.1:1")
    assert not fetch_messages.leads_away(flow, client)
    flow.request.host, flow.request.scheme = "elsewhere.example", "https"
    assert fetch_messages.leads_away(flow, client)
    flow.request.text = '{"a": 1}'
    flow.request.headers["Accept-Encoding"] = "gzip"
    sent = fetch_messages.request_of(flow, client)
    assert sent.body == b'{"a": 1}'
    assert dict(sent.headers) == {
        b"Host": b"127.0.0.1:1",
        b"Content-Type": b"application/json",
        b"Accept-Encoding": b"identity",
        b"Content-Length": b"8",
    }
    assert flow.request.url == "http://127.0.0.1:1/generate"
    assert flow.request.headers.fields == tuple(sent.headers)


def test_killed_while_it_is_held() -> None:
    """Who waits for a held flow goes on when that is killed, too."""

    async def run() -> None:
        _, flow = flow_to("http://127.0.0.1:1")
        flow.intercept()
        waiting = asyncio.ensure_future(flow.wait_for_resume())
        await asyncio.sleep(0)
        flow.kill()
        async with asyncio.timeout(60):
            await waiting
        assert flow.error and flow.error.msg == Error.KILLED_MESSAGE

    asyncio.run(run())


@each(
    ("media_type", "is_stream"),
    [("text/event-stream", True), ("Text/Event-Stream; charset=utf-8", True),
     ("application/json", False), ("", False)],
)  # fmt: skip
def test_streams(media_type: str, is_stream: bool) -> None:
    """An answer of events is passed on as it comes."""
    headers = [(b"content-type", media_type.encode())]
    response = fetch_messages.response_of(200, headers, None)
    assert fetch_messages.is_stream(response) is is_stream
