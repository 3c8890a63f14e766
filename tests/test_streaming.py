"""What the addon keeps of streams: who is waited for, and what a broken one does."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import tflow

from sglang_cached_addon import dialects
from sglang_cached_addon.exchange import Exchange, Fetch, Follow, Live, Request
from sglang_cached_addon.inflight import Follower, State
from sglang_cached_addon.policy import Reason
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.streaming import Streaming

HEADERS = {b"content-type": b"application/json"}
BODY = b'{"prompt":"a","stream":true}'
COUNTED = BODY.replace(b"}", b',"stream_options":{"include_usage":true}}')
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


def led(exchange: Exchange, body: bytes = BODY) -> tuple[Fetch, Live]:
    fetch = exchange.receive(Request("POST", "/v1/completions", HEADERS, body), 0.0)
    assert isinstance(fetch, Fetch)
    return fetch, Live(time.monotonic(), fetch)


def tee(
    exchange: Exchange, body: bytes = BODY
) -> tuple[Callable[[bytes], bytes | list[bytes]], Fetch, Live]:
    fetch, live = led(exchange, body)
    live.outcome = exchange.open(fetch)
    return Streaming(lambda client: None).tee(exchange, fetch, live), fetch, live


def whole(pieces: bytes | list[bytes]) -> bytes:
    return pieces if isinstance(pieces, bytes) else b"".join(pieces)


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
    assert whole(take(data)) == data
    assert take(CHUNK) == CHUNK
    assert live.fetch is None
    assert live.outcome
    assert live.outcome.reason == "unreadable-answer"
    assert "broken" in caplog.text
    assert follower
    assert fetch.lead
    assert not fetch.lead.stream.is_live


def test_a_broken_part(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices that upstream numbers for itself would be taken for those that are stored."""
    take, _, _ = tee(exchange)
    for event in (CHUNK, USAGE, DONE):
        take(event)
    take, fetch, _ = tee(exchange, BODY.replace(b"}", b',"n":2}'))
    assert fetch.is_partial
    monkeypatch.setattr(exchange, "relay", lambda fetch, data: 1 / 0)
    assert [take(CHUNK), take(DONE), take(b"")] == [b"", b"", b""]


@pytest.mark.parametrize(
    "body", [BODY, BODY.replace(b"}", b',"stream_options":{"include_usage":true}}')]
)
def test_half_an_event(body: bytes, exchange: Exchange) -> None:
    """What upstream ends in the middle of reaches the client as it is, and is not stored."""
    take, _, live = tee(exchange, body)
    assert whole(take(CHUNK + DONE[:-1])) + whole(take(b"")) == CHUNK + DONE[:-1]
    assert live.fetch


def test_followers_see_the_end(exchange: Exchange) -> None:
    """Followers of a stream that ends without its terminator would see it hung up on."""
    for ended, state in ((True, State.COMPLETE), (False, State.FAILED)):
        fetch, _ = led(exchange)
        assert fetch.lead
        exchange.open(fetch)
        exchange.fail(fetch, Reason.CUT, 200, ended=ended)
        assert fetch.lead.stream.state is state


def test_nothing_is_held(exchange: Exchange) -> None:
    """A client that stays connected would hold all that it was ever streamed."""

    async def run() -> None:
        streaming = Streaming(lambda client: None)
        leading, following = tflow.tflow(), tflow.tflow()
        streaming.enable(leading.client_conn)
        fetch = led(exchange)[0]
        assert fetch.lead
        streaming.lead(leading, fetch.lead)
        follow = exchange.receive(Request("POST", "/v1/completions", HEADERS, BODY), 0.0)
        assert isinstance(follow, Follow)
        exchange.open(fetch)
        assert await streaming.opened(following, follow)
        streaming.follow(following, http.Response.make(), follow, exchange)
        exchange.complete_stream(fetch, now=0.0, seconds=0.0)
        for flow in (leading, following):
            streaming.forget(flow)
        streaming.leave(following.client_conn, follow.follower)
        held = weakref.ref(fetch.lead.stream)
        del fetch, follow
        gc.collect()
        assert held() is None
        assert leading.client_conn
        assert following.client_conn

    asyncio.run(run())


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
