"""What the addon keeps of streams: who is waited for, and what a broken one does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy.test import tflow

from sglang_cached_addon import dialects
from sglang_cached_addon.exchange import Exchange, Fetch, Live, Request
from sglang_cached_addon.inflight import Follower
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.streaming import Streaming

HEADERS = {b"content-type": b"application/json"}
BODY = b'{"prompt":"a","stream":true}'
CHUNK = b'data: {"id":"i","choices":[{"index":0,"text":"b","finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"i","choices":[],"usage":{"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


class Store(Memory):
    """Pools that are kept nowhere."""

    def append(
        self, key: bytes, dialect: str, content: Any, samples: Any, raw: bytes = b""
    ) -> None:
        super().append(key, dialect, samples, raw)


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(dialects.installed(), Store(), lambda: "id")


def led(exchange: Exchange) -> tuple[Fetch, Live]:
    fetch = exchange.receive(Request("POST", "/v1/completions", HEADERS, BODY), 0.0)
    assert isinstance(fetch, Fetch)
    return fetch, Live(time.monotonic(), fetch)


def tee(exchange: Exchange) -> tuple[Callable[[bytes], bytes | list[bytes]], Fetch, Live]:
    fetch, live = led(exchange)
    live.outcome = exchange.open(fetch)
    return Streaming(lambda client: None).tee(exchange, fetch, live), fetch, live


def test_stored_with_the_last_word(exchange: Exchange) -> None:
    """Who repeats a call as soon as it is done finds it answered."""
    take, _, live = tee(exchange)
    assert take(CHUNK) == [CHUNK]
    assert take(USAGE) == []
    assert live.fetch
    assert take(DONE) == [DONE]
    assert live.fetch is None
    assert live.outcome
    assert live.outcome.reason is None
    assert exchange.lookup("POST", "/v1/completions", BODY, 0.0)
    assert take(b"") == b""


@pytest.mark.parametrize("where", ["relay", "complete_stream"])
def test_never_raises(
    where: str, exchange: Exchange, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """What goes wrong in recording costs the recording, and not the client."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken")

    take, fetch, live = tee(exchange)
    follower = Follower(fetch.lead.stream) if fetch.lead else None
    monkeypatch.setattr(exchange, where, broken)
    data = DONE if where == "complete_stream" else CHUNK
    assert take(data) == data
    assert take(CHUNK) == CHUNK
    assert live.fetch is None
    assert live.outcome
    assert live.outcome.reason == "unreadable-answer"
    assert "broken" in caplog.text
    assert follower
    assert fetch.lead
    assert not fetch.lead.stream.is_live


def test_outlives(exchange: Exchange) -> None:
    """A flow goes on without its client for as long as somebody follows."""

    async def run() -> None:
        streaming = Streaming(lambda client: None)
        flow = tflow.tflow()
        fetch, _ = led(exchange)
        assert fetch.lead
        streaming.lead(flow, fetch.lead)
        assert not streaming.outlives(flow)  # its client is not behind a gateway
        streaming.enable(flow.client_conn)
        streaming.lead(flow, fetch.lead)
        assert not streaming.outlives(flow)
        follower = Follower(fetch.lead.stream)
        assert streaming.outlives(flow)
        waits = streaming.left(flow.client_conn)
        assert waits
        task = asyncio.ensure_future(waits)
        await asyncio.sleep(0)
        assert not task.done()
        follower.leave()
        await asyncio.wait_for(task, 10)
        assert streaming.left(flow.client_conn) is None

    asyncio.run(run())
