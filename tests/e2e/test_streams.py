"""Streams through the proxy, over real sockets: recorded, replayed, topped up and followed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.conftest import Proxy, StartProxy, cache_status, read_all, until
from tests.e2e.calls import BODIES, DONE, USAGE, Stream, post, raw, said, sampled, sampling, stream
from tests.replayer import replaying
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each


@each("path", BODIES)
def test_replay_is_the_recording(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """A stream with one choice comes again byte for byte, chunk for chunk."""
    simulator.received.clear()
    first, recorded = stream(proxy, path, sampling(path))
    second, replayed = stream(proxy, path, sampling(path))
    assert (first["x-cache"], second["x-cache"]) == ("MISS", "HIT")
    assert cache_status(first) == "sglang-cached; fwd=miss"
    assert cache_status(second) == "sglang-cached; hit"
    assert replayed == recorded
    assert len(recorded) > 8
    assert len(sampled(simulator)) == 1


@pytest.fixture
def slow() -> Iterator[Simulator]:
    """An upstream that takes its time, for streams that nobody hears to their ends."""
    with running(Profile(tokens_per_second=40)) as upstream:
        yield upstream


def paused(simulator: Simulator, proxy: Proxy, path: str, body: Any) -> tuple[Stream, list[bytes]]:
    """A leader whose stream waits half way until `release`; and what it has got by then."""
    events = simulator.events
    simulator.faults.append(Fault.PAUSE)
    leader = Stream(proxy, path, body)
    until(lambda: simulator.waiting == 1)
    leader.begin()
    chunks = leader.chunks()
    return leader, [next(chunks) for _ in range(simulator.events - events)]


@pytest.fixture
def behind(slow: Simulator, start_proxy: StartProxy) -> Proxy:
    return start_proxy(slow.url)


@each("path", BODIES)
def test_client_leaves(path: str, slow: Simulator, behind: Proxy) -> None:
    """The GPU is not used for nobody: a fetch goes on for its last client, and ends with it."""
    aborted, cuts = slow.aborted, behind.log.count("(cut)")
    body = {**sampling(path, tokens=400), "stream": True}
    leader = Stream(behind, path, body)
    next(leader.begin().chunks())
    with closing(Stream(behind, path, body)) as follower:
        next(follower.begin().chunks())
        leader.close()
        next(follower.chunks())
        assert slow.aborted == aborted
    until(lambda: slow.aborted == aborted + 1)
    until(lambda: behind.log.count("(cut)") > cuts)
    assert behind.stats()["total_responses"] == 0


@pytest.mark.parametrize("path", BODIES)
def test_late_joiner(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """An equal call attaches to the stream under way: what came so far, then each event."""
    body = {**sampling(path, tokens=40), "stream": True}
    leader, first = paused(simulator, proxy, path, body)
    with closing(leader), closing(Stream(proxy, path, body)) as follower:
        joined = follower.begin().chunks()
        early = next(joined)
        assert proxy.stats()["followers"] == 1
        simulator.release()
        whole, also = first + leader.rest(), [early, *joined]
    assert follower.headers["x-cache"] == "COLLAPSED"
    assert cache_status(follower.headers) == "sglang-cached; fwd=miss; collapsed"
    assert also[-1] == whole[-1] == DONE
    if path == "/generate":
        # Each event has all of the text, so that of those that wait the newest is enough.
        assert early == first[-1]
        assert [chunk for chunk in whole if chunk in also] == also
        assert also[-2:] == whole[-2:]
    else:
        assert also == whole
    assert len(sampled(simulator)) == 1
    stats = proxy.stats()
    assert (stats["collapsed"], stats["hits"], stats["misses"]) == (1, 0, 1)
    assert (stats["samples_from_cache"], stats["tokens_saved"]) == (1, 40)
    assert (stats["streams_in_flight"], stats["followers"]) == (0, 0)
    assert stream(proxy, path, sampling(path, tokens=40))[1] == whole


def test_followers_see_their_own(simulator: Simulator, proxy: Proxy) -> None:
    """Followers may want usage where the leader does not, and have a rid of their own."""
    path = "/v1/chat/completions"
    body = {**sampling(path, tokens=40), "stream": True}
    leader, first = paused(simulator, proxy, path, body)
    other = {**body, "rid": "mine", "stream_options": USAGE}
    with closing(leader), closing(Stream(proxy, path, other)) as follower:
        joined = follower.begin().chunks()
        early = next(joined)
        simulator.release()
        events = said([early, *joined])
        assert {event["id"] for event in events} == {"mine"}
        assert events[-1]["usage"]["completion_tokens"] == 40
        assert all("usage" not in event for event in said(first + leader.rest()))
    assert len(sampled(simulator)) == 1


@each("path", BODIES)
def test_outlives_the_leader(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """When the leader's client leaves, the fetch goes on for who is attached."""
    body = {**sampling(path, tokens=40), "stream": True}
    leader, _ = paused(simulator, proxy, path, body)
    with closing(Stream(proxy, path, body)) as follower:
        joined = follower.begin().chunks()
        next(joined)
        leader.close()
        assert stream(proxy, path, sampling(path))[1][-1] == DONE  # it goes on for others, too
        simulator.release()
        assert list(joined)[-1] == DONE
    assert simulator.aborted == 0
    assert stream(proxy, path, sampling(path, tokens=40))[0]["x-cache"] == "HIT"


def test_paced_replay(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Ten tokens at forty a second take a quarter of a second, however fast they were recorded."""
    proxy = start_proxy(simulator.url, "--replay-tokens-per-second", "40")
    path = "/v1/chat/completions"
    _, recorded = stream(proxy, path, sampling(path, tokens=10))
    began = time.monotonic()
    headers, replayed = stream(proxy, path, sampling(path, tokens=10))
    assert time.monotonic() - began >= 0.2
    assert headers["x-cache"] == "HIT"
    assert replayed == recorded
    assert (proxy.stats()["hits"], proxy.stats()["misses"]) == (1, 1)


def test_http_1_0(simulator: Simulator, proxy: Proxy) -> None:
    """A client that knows no chunks gets a replay in one piece."""
    path = "/v1/chat/completions"
    _, recorded = stream(proxy, path, sampling(path))
    with proxy.connect(30) as client:
        client.sendall(raw(path, {**sampling(path), "stream": True}, "1.0"))
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert b"X-Cache: HIT" in head
    assert b"chunked" not in head
    assert body == b"".join(recorded)


def test_not_a_stream_after_all(start_proxy: StartProxy) -> None:
    """A 200 that is no stream is passed on, and not stored."""
    with replaying() as upstream:
        body = '{"hello": 1}'
        headers = [["content-type", "application/json"]]
        upstream.pair = {"response": {"status": 200, "headers": headers, "body": body}}
        proxy = start_proxy(upstream.url)
        path = "/v1/completions"
        answer = post(proxy, path, {**sampling(path), "stream": True})
        assert (answer.status_code, answer.text) == (200, body)
        assert "detail=unreadable-answer" in answer.headers["Cache-Status"]
        assert proxy.stats()["not_stored"] == {"unreadable-answer": 1}
