"""Streams through the proxy, over real sockets: recorded, replayed, topped up and followed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import Proxy, StartProxy, cache_status, until
from tests.e2e.test_proxy import BODIES, post, sampled
from tests.replayer import replaying
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each

USAGE = {"include_usage": True}
DONE = b"data: [DONE]\n\n"


class Stream:
    """A client that sees chunks."""

    def __init__(self, url: str, path: str, body: Any) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self.file = self.socket.makefile("rb")
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(raw)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + raw)
        self.status = 0
        self.headers: dict[str, str] = {}

    def begin(self) -> Stream:
        """Reads the head."""
        self.status = int(self.file.readline().split()[1])
        while (line := self.file.readline().rstrip()) != b"":
            name, _, value = line.decode().partition(": ")
            self.headers[name.lower()] = value
        return self

    def chunks(self) -> Iterator[bytes]:
        """Raises ConnectionError where the stream is cut."""
        while line := self.file.readline():
            size = int(line, 16)
            data = self.file.read(size)
            assert self.file.read(2) in (b"\r\n", b"")
            if not size:
                return
            if len(data) < size:
                break
            yield data
        raise ConnectionError("cut")

    def rest(self) -> list[bytes]:
        return list(self.chunks())

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def stream(proxy: Proxy, path: str, body: Any) -> tuple[dict[str, str], list[bytes]]:
    """A streamed answer's head and chunks; each must be one event."""
    with closing(Stream(proxy.url, path, {**body, "stream": True})) as client:
        chunks = client.begin().rest()
    assert client.status == 200
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["transfer-encoding"] == "chunked"
    assert all(c.startswith(b"data: ") and c.find(b"\n\n") == len(c) - 2 for c in chunks)
    return client.headers, chunks


def said(chunks: list[bytes]) -> list[Any]:
    assert chunks[-1] == DONE
    return [json.loads(chunk[6:]) for chunk in chunks[:-1]]


def sampling(path: str, n: int = 1, tokens: int = 8) -> dict[str, Any]:
    """A call for n samples."""
    body = BODIES[path]
    if path == "/generate":
        params = {**body["sampling_params"], "n": n, "max_new_tokens": tokens}
        return {**body, "sampling_params": params}
    return {**body, "n": n, "max_tokens": tokens}


def texts(path: str, chunks: list[bytes]) -> dict[int, str]:
    """What each choice of a stream says."""
    found: dict[int, str] = {}
    for event in said(chunks):
        if path == "/generate":
            found[event.get("index", 0)] = event["text"]
        for choice in event.get("choices", ()):
            text = choice["text"] if "text" in choice else choice["delta"].get("content")
            found[choice["index"]] = found.get(choice["index"], "") + (text or "")
    return found


def json_texts(path: str, answer: Any) -> dict[int, str]:
    if path == "/generate":
        natives = answer if isinstance(answer, list) else [answer]
        return {k: native["text"] for k, native in enumerate(natives)}
    return {
        c["index"]: c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]
    }


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


@each("path", BODIES)
@pytest.mark.parametrize("n", [1, 2])
def test_both_forms_from_one_pool(path: str, n: int, simulator: Simulator, proxy: Proxy) -> None:
    """A stream answers a JSON call, and the other way round; tokens are counted the same."""
    simulator.received.clear()
    body = sampling(path, n)
    _, chunks = stream(proxy, path, body)
    answer = post(proxy, path, body)
    assert answer.headers["X-Cache"] == "HIT"
    assert answer.headers["content-type"] == "application/json"
    assert json_texts(path, answer.json()) == texts(path, chunks)
    other = json.loads(json.dumps(body).replace("one two", "three four"))
    direct = post(proxy, path, other)
    headers, chunks = stream(proxy, path, other)
    assert (direct.headers["X-Cache"], headers["x-cache"]) == ("MISS", "HIT")
    assert texts(path, chunks) == json_texts(path, direct.json())
    # One delta a choice; chat has a role before it, and a finish behind all.
    assert len(chunks) == 1 + n * (3 if "chat" in path else 1)
    assert len(sampled(simulator)) == 2


@each("path", ["/v1/completions", "/v1/chat/completions"])
def test_usage_only_where_asked_for(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """Recorded without, replayed with, and as in JSON; upstream is always asked for it."""
    simulator.received.clear()
    body = sampling(path)
    _, without = stream(proxy, path, body)
    headers, chunks = stream(proxy, path, {**body, "stream_options": USAGE})
    assert headers["x-cache"] == "HIT"
    *events, usage = said(chunks)
    assert events == said(without)
    assert usage["choices"] == []
    answer = post(proxy, path, body).json()
    known = {name: value for name, value in answer["usage"].items() if value is not None}
    assert usage["usage"].items() >= known.items()
    assert sampled(simulator)[0]["stream_options"] == USAGE
    _, again = stream(proxy, path, body)
    assert again == without


@each("path", BODIES)
def test_top_up(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """After n=1, a stream of n=3 begins with the stored choice and generates two."""
    samples = simulator.samples
    _, first = stream(proxy, path, sampling(path))
    options = {} if path == "/generate" else {"stream_options": USAGE}
    headers, chunks = stream(proxy, path, {**sampling(path, 3), **options})
    assert headers["x-cache"] == "PARTIAL"
    assert 'detail="1 of 3 stored"' in headers["cache-status"]
    assert simulator.samples == samples + 3
    found = texts(path, chunks)
    assert sorted(found) == [0, 1, 2]
    assert found[0] == texts(path, first)[0]
    again, replayed = stream(proxy, path, {**sampling(path, 3), **options})
    assert again["x-cache"] == "HIT"
    assert sorted(replayed) == sorted(chunks)
    answer = post(proxy, path, sampling(path, 3)).json()
    assert json_texts(path, answer) == found
    if path != "/generate":
        assert said(chunks)[-1]["usage"]["completion_tokens"] == 24
        assert said(chunks)[-1]["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert len({event["created"] for event in said(chunks)}) == 1


@each("path", ["/generate", "/v1/completions"])
def test_batch_item_by_item(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """A streamed batch takes what is stored of each prompt, and generates the rest."""
    name = "text" if path == "/generate" else "prompt"
    one = sampling(path)
    _, first = stream(proxy, path, {**one, name: "b"})
    headers, chunks = stream(proxy, path, {**one, name: ["a", "b", "a", "c"]})
    assert headers["x-cache"] == "PARTIAL"
    assert sampled(simulator)[-1][name] == ["a", "a", "c"]
    found = texts(path, chunks)
    assert sorted(found) == [0, 1, 2, 3]
    assert found[1] == texts(path, first)[0]
    again, replayed = stream(proxy, path, {**one, name: ["a", "b", "a", "c"]})
    assert again["x-cache"] == "HIT"
    assert sorted(replayed) == sorted(chunks)


FAULTS = {
    Fault.ABORT: "abort",
    Fault.ERROR_BODY: "error",
    Fault.ERROR_EVENT: "error",
    Fault.TOO_FEW: "unfinished",
}


@each("path", BODIES)
@each("fault", FAULTS, ids=str)
def test_never_stored(path: str, fault: Fault, simulator: Simulator, proxy: Proxy) -> None:
    """A stream that went wrong reaches the client as it is, says so, and is not kept."""
    post(proxy, "/cache/clear", None)
    reason, before, told = FAULTS[fault], proxy.stats()["not_stored"], proxy.log.count("(")
    body = {**sampling(path, 2), "stream": True}
    simulator.faults += [fault, fault]
    direct = requests.post(simulator.url + path, json=body, timeout=30).text
    headers, chunks = stream(proxy, path, sampling(path, 2))
    assert headers["x-cache"] == "MISS"
    assert len(chunks) == direct.count("data: ")
    until(lambda: proxy.log.count("(") > told)
    assert f"({reason})" in proxy.log.splitlines()[-1]
    stats = proxy.stats()
    assert stats["total_responses"] == 0
    assert stats["not_stored"] == {**before, reason: before.get(reason, 0) + 1}
    assert stream(proxy, path, sampling(path, 2))[0]["x-cache"] == "MISS"


@each("path", BODIES)
def test_upstream_cuts(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """When upstream hangs up, the client sees just that, and nothing is stored."""
    post(proxy, "/cache/clear", None)
    cuts = proxy.log.count("(cut)")
    simulator.faults.append(Fault.CUT)
    body = {**sampling(path), "stream": True}
    with closing(Stream(proxy.url, path, body)) as client, pytest.raises(ConnectionError):
        client.begin().rest()
    until(lambda: proxy.log.count("(cut)") > cuts)
    assert proxy.stats()["total_responses"] == 0
    assert stream(proxy, path, sampling(path))[0]["x-cache"] == "MISS"


@pytest.fixture
def slow() -> Iterator[Simulator]:
    """An upstream that takes its time, for streams that nobody hears to their ends."""
    with running(Profile(tokens_per_second=40)) as upstream:
        yield upstream


def paused(simulator: Simulator, proxy: Proxy, path: str, body: Any) -> tuple[Stream, list[bytes]]:
    """A leader whose stream waits half way until `release`; and what it has got by then."""
    events = simulator.events
    simulator.faults.append(Fault.PAUSE)
    leader = Stream(proxy.url, path, body)
    until(lambda: simulator.waiting == 1)
    leader.begin()
    chunks = leader.chunks()
    return leader, [next(chunks) for _ in range(simulator.events - events)]


@pytest.fixture
def behind(slow: Simulator, start_proxy: StartProxy) -> Proxy:
    return start_proxy(slow.url)


@each("path", BODIES)
def test_client_leaves(path: str, slow: Simulator, behind: Proxy) -> None:
    """The GPU is not used for nobody: the fetch ends with its only client."""
    aborted, cuts = slow.aborted, behind.log.count("(cut)")
    body = {**sampling(path, tokens=400), "stream": True}
    with closing(Stream(behind.url, path, body)) as client:
        next(client.begin().chunks())
    until(lambda: slow.aborted == aborted + 1)
    until(lambda: behind.log.count("(cut)") > cuts)
    assert behind.stats()["total_responses"] == 0


@pytest.mark.parametrize("path", BODIES)
def test_late_joiner(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """An equal call attaches to the stream under way: what came so far, then each event."""
    body = {**sampling(path, tokens=40), "stream": True}
    leader, first = paused(simulator, proxy, path, body)
    with closing(leader), closing(Stream(proxy.url, path, body)) as follower:
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
    assert (stats["collapsed"], stats["hits"], stats["misses"]) == (1, 1, 1)
    assert (stats["samples_from_cache"], stats["tokens_saved"]) == (1, 40)
    assert (stats["streams_in_flight"], stats["followers"]) == (0, 0)
    assert stream(proxy, path, sampling(path, tokens=40))[1] == whole


def test_followers_see_their_own(simulator: Simulator, proxy: Proxy) -> None:
    """Followers may want usage where the leader does not, and have a rid of their own."""
    path = "/v1/chat/completions"
    body = {**sampling(path, tokens=40), "stream": True}
    leader, first = paused(simulator, proxy, path, body)
    other = {**body, "rid": "mine", "stream_options": USAGE}
    with closing(leader), closing(Stream(proxy.url, path, other)) as follower:
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
    with closing(Stream(proxy.url, path, body)) as follower:
        joined = follower.begin().chunks()
        next(joined)
        leader.close()
        assert stream(proxy, path, sampling(path))[1][-1] == DONE  # it goes on for others, too
        simulator.release()
        assert list(joined)[-1] == DONE
    assert simulator.aborted == 0
    assert stream(proxy, path, sampling(path, tokens=40))[0]["x-cache"] == "HIT"


def test_ends_with_the_last_follower(slow: Simulator, behind: Proxy) -> None:
    path = "/v1/completions"
    body = {**sampling(path, tokens=400), "stream": True}
    leader = Stream(behind.url, path, body)
    next(leader.begin().chunks())
    follower = Stream(behind.url, path, body)
    next(follower.begin().chunks())
    leader.close()
    next(follower.chunks())
    assert slow.aborted == 0
    follower.close()
    until(lambda: slow.aborted == 1)
    until(lambda: "(cut)" in behind.log)


def test_many_at_once(simulator: Simulator, proxy: Proxy) -> None:
    """Equal calls that come before upstream says a word are one call."""
    path = "/v1/chat/completions"
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(stream, proxy, path, sampling(path)) for _ in range(20)]
        until(lambda: proxy.stats()["followers"] == 19 and simulator.waiting)
        simulator.release()
        kinds = sorted(answer.result()[0]["x-cache"] for answer in answers)
    assert len(sampled(simulator)) == 1
    assert kinds == ["COLLAPSED"] * 19 + ["MISS"]
    assert len({b"".join(answer.result()[1]) for answer in answers}) == 1


def test_next_in_line(simulator: Simulator, proxy: Proxy) -> None:
    """When the leader is refused, its followers ask for themselves: one of them does."""
    path = "/v1/chat/completions"
    body = {**sampling(path), "stream": True}
    simulator.faults += [Fault.HOLD]
    with closing(Stream(proxy.url, path, body)) as leader, ThreadPoolExecutor(3) as pool:
        until(lambda: proxy.stats()["streams_in_flight"] == 1)
        followers = [pool.submit(stream, proxy, path, sampling(path)) for _ in range(3)]
        until(lambda: proxy.stats()["followers"] == 3 and simulator.waiting)
        leader.close()
        simulator.release()
        answers = [follower.result() for follower in followers]
    assert len({b"".join(chunks) for _, chunks in answers}) == 1
    assert len(sampled(simulator)) == 1


def test_followers_of_a_cut(slow: Simulator, behind: Proxy) -> None:
    """A stream that breaks off breaks off for all."""
    path = "/v1/completions"
    slow.faults.append(Fault.CUT)
    body = {**sampling(path, tokens=200), "stream": True}
    with closing(Stream(behind.url, path, body)) as leader:
        next(leader.begin().chunks())
        with closing(Stream(behind.url, path, body)) as follower:
            with pytest.raises(ConnectionError):
                follower.begin().rest()
            with pytest.raises(ConnectionError):
                leader.rest()
    assert behind.stats()["total_responses"] == 0


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


@pytest.mark.parametrize("path", BODIES)
def test_after_a_restart(path: str, simulator: Simulator, start_proxy: StartProxy) -> None:
    """Where events ended is kept on disk."""
    first = start_proxy(simulator.url)
    _, recorded = stream(first, path, sampling(path))
    assert first.stop() == 0
    headers, replayed = stream(start_proxy(simulator.url), path, sampling(path))
    assert headers["x-cache"] == "HIT"
    assert replayed == recorded


def test_http_1_0(simulator: Simulator, proxy: Proxy) -> None:
    """A client that knows no chunks gets a replay in one piece."""
    path = "/v1/chat/completions"
    _, recorded = stream(proxy, path, sampling(path))
    raw = json.dumps({**sampling(path), "stream": True}).encode()
    parts = urlsplit(proxy.url)
    assert parts.hostname and parts.port
    with socket.create_connection((parts.hostname, parts.port), timeout=30) as client:
        client.sendall(
            b"POST %b HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), len(raw), raw)
        )
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
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
