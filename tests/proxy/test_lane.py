"""The fast lane is invisible: mitmproxy's own way is the oracle, on raw sockets."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from sglang_cached_addon.core.outcome import Kind, Outcome
from sglang_cached_addon.proxy.connections import Connections
from sglang_cached_addon.proxy.lane import open_lane
from sglang_cached_addon.service.asking import Reply, Streamed
from sglang_cached_addon.wire.http1 import HeadReader
from tests.conftest import Proxy, StartProxy, corpus, read_all, until
from tests.e2e.conftest import LANES, command
from tests.proxy.test_connections import clients_of
from tests.replayer import replaying
from tests.simulator import Fault, Simulator
from tests.tables import each
from tests.wire.test_http1 import FOREIGN, head

QUIET_SECONDS = 0.5
"""After so long without a byte, nothing more is expected; first try."""

(PAIR,) = corpus("generate-n1")
KNOWN = PAIR["request"]["body"].encode()
STREAM = b'{"text": "streamed", "stream": true}'
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Twins:
    """Two proxies in front of one upstream, with and without the lane."""

    lane: Proxy
    hooks: Proxy


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with replaying() as upstream:
        upstream.pair = PAIR
        proxies = [
            command(upstream.url, tmp_path_factory.mktemp(name), *arguments)
            for name, arguments in LANES.items()
        ]
        for proxy in proxies:
            proxy.wait_until_ready()
            assert ask(proxy.url, KNOWN).headers["X-Cache"] == "MISS"
        yield Twins(*proxies)
        for proxy in proxies:
            assert proxy.stop() == 0
            assert "Traceback" not in proxy.log, proxy.log


def ask(url: str, body: bytes) -> requests.Response:
    return requests.post(f"{url}/generate", data=body, headers=JSON, timeout=30)


def request(body: bytes = KNOWN, *fields: bytes, line: bytes = b"POST /generate HTTP/1.1") -> bytes:
    """A plain request."""
    length = b"Content-Length: %d" % len(body)
    return head(line, b"Host: x", b"Content-Type: application/json", length, *fields) + body


LAST = b"GET /cache/none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def talk(proxy: Proxy, pieces: Sequence[bytes], quiet: float = QUIET_SECONDS) -> bytes | None:
    """Sends pieces, each as a packet of its own, and gives all that comes back until it is quiet.

    None (or nothing) if the proxy hung up while pieces were still on their way: what it had
    sent is then lost by TCP, or not, by chance.
    """
    received = bytearray()
    with proxy.connect(quiet) as client:
        try:
            try:
                for piece in pieces:
                    client.sendall(piece)
                while data := client.recv(1 << 20):
                    received += data
            except TimeoutError:
                # Both may wait for more; neither may answer differently when there is no more.
                client.shutdown(socket.SHUT_WR)
                client.settimeout(30)
                while data := client.recv(1 << 20):
                    received += data
        except (ConnectionResetError, BrokenPipeError):
            return None
    return normal(bytes(received))


def normal(data: bytes) -> bytes:
    """Without ids, and what the clock and the upstream's own clock make different."""
    data = re.sub(rb"(?mi)^(age|date|x-request-id): .*\r\n", b"", data)
    return re.sub(rb"127\.0\.0\.1:\d+", b"PEER", data)


def both(twins: Twins, pieces: Sequence[bytes]) -> tuple[bytes, bytes]:
    """What each of the two answers; at once where the pieces met a closed door.

    Where they differ, with more patience: a slow answer is not another one.
    """
    for tries in range(6):
        quiet = QUIET_SECONDS * (1 + tries)
        lane, hooks = talk(twins.lane, pieces, quiet), talk(twins.hooks, pieces, quiet)
        if lane is not None and lane == hooks:
            break
        if lane is None or hooks is None:
            pieces = [b"".join(pieces)]
    assert lane is not None
    assert hooks is not None
    return lane, hooks


def test_hit_is_byte_equal(twins: Twins) -> None:
    """A hit has the same bytes, and is counted the same."""

    def counted() -> list[dict[str, Any]]:
        return [
            {**proxy.stats(), "cache_file": "", "upstream_seconds_saved": 0, "pending_writes": 0}
            | {"lines": proxy.log.count("[Cache hit] /generate 1/1 ")}
            for proxy in (twins.lane, twins.hooks)
        ]

    before = counted()
    lane, hooks = both(twins, [request(), LAST])
    assert lane == hooks
    assert lane.count(b"X-Cache: HIT") == 1
    rises = [
        {name: now[name] - then[name] for name, count in now.items() if type(count) is int}
        for then, now in zip(before, counted(), strict=True)
    ]
    assert rises[0] == rises[1]
    assert rises[0]["hits"] == rises[0]["lines"] > 0


def test_every_split(twins: Twins) -> None:
    """A request in two packets, split anywhere, is answered the same."""
    whole = request()
    wanted = talk(twins.hooks, [whole, LAST])
    for at in range(1, len(whole)):
        pieces = [whole[:at], whole[at:] + LAST]
        if talk(twins.lane, pieces) != wanted:  # or it is slow
            lane, hooks = both(twins, pieces)
            assert lane == hooks


def test_byte_by_byte(twins: Twins) -> None:
    """A request in packets of one byte is answered the same."""
    lane, hooks = both(twins, [bytes([byte]) for byte in request() + LAST])
    assert lane == hooks
    assert b"X-Cache: HIT" in lane


@each("data", FOREIGN.values(), FOREIGN)
def test_foreign(data: bytes, twins: Twins) -> None:
    """Whatever is not plain gets mitmproxy's own answer, alone and behind a hit."""
    for before in (b"", request()):
        lane, hooks = both(twins, [before + data + b"{}", LAST])
        assert lane == hooks


MIXED = {
    "hits": [request()] * 5,
    "hit, miss, hit": [request(), request(b'{"text": "m1"}'), request()],
    "miss, hit, miss": [request(b'{"text": "m2"}'), request(), request(b'{"text": "m3"}')],
    "hit, other route, hit": [request(), b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n", request()],
    "hit, bypass, hit": [request(), request(b"not json"), request()],
    "hit, PUT": [request(), request(line=b"PUT /generate HTTP/1.1")],
    "hit, expect, hit": [request(), request(KNOWN, b"Expect: 100-continue"), request()],
    "HTTP/1.0": [request(line=b"POST /generate HTTP/1.0"), request()],
    "closing hit, hit": [request(KNOWN, b"Connection: close"), request()],
    "chunked": [
        head(
            b"POST /generate HTTP/1.1",
            b"Host: x",
            b"Content-Type: application/json",
            b"Transfer-Encoding: chunked",
        )
        + b"%x\r\n%s\r\n0\r\n\r\n" % (len(KNOWN), KNOWN),
        request(),
    ],
}


@each("requests_", MIXED.values(), MIXED)
def test_mixed(requests_: list[bytes], twins: Twins) -> None:
    """Hits and others on one connection come in order: one by one, at once, and in odd pieces."""
    joined = b"".join(requests_) + LAST
    chance = random.Random(7)
    ways = [[*requests_, LAST], [joined], pieces(joined, chance), pieces(joined, chance)]
    answers = [both(twins, way) for way in ways]
    assert all(lane == hooks for lane, hooks in answers)
    # The first way may store what is a miss then; after that all is known, and grows older.
    assert len({re.sub(rb"\r\nAge: \d+", b"", lane) for lane, _ in answers[1:]}) == 1


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.sample(range(1, len(data)), min(6, len(data) - 1)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def test_large_body(twins: Twins) -> None:
    """A body of several megabytes, in many reads, hits in the lane too."""
    body = json.dumps({"text": "x" * (5 << 20), "sampling_params": {}}).encode()
    for kind in (b"MISS", b"HIT"):
        lane, hooks = (
            talk(proxy, [request(body), LAST], 20) for proxy in (twins.lane, twins.hooks)
        )
        assert lane is not None
        assert lane == hooks
        assert b"X-Cache: " + kind in lane


def test_fuzz(twins: Twins) -> None:
    """Random sequences, mutated and cut at random, get the same bytes from both."""
    chance = random.Random(20260101)
    parts = [*FOREIGN.values(), *(r for rs in MIXED.values() for r in rs), request(), request()]
    parts = [part for part in parts if len(part) < 4096]
    for _ in range(60):
        data = b"".join(chance.choices(parts, k=chance.randint(1, 4)))
        for _ in range(chance.choice((0, 0, 1, 2))):
            at = chance.randrange(len(data))
            change = chance.choice((b"", b"\r", b"\n", b"\r\n", b" ", b"\x00", b":", b"0"))
            data = data[:at] + change + data[at + chance.choice((0, 1)) :]
        way = pieces(data + LAST, chance)
        lane, hooks = both(twins, way)
        assert lane == hooks, way


def test_behind_what_waits(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What comes while an answer is waited for, be it by the lane or by mitmproxy, is answered in
    turn. What a client has asked for that hangs up is ended, and what it has sent behind it is not
    asked for; the next client is served."""
    proxy = start_proxy(simulator.url)
    assert ask(proxy.url, KNOWN).ok
    until(lambda: proxy.stats()["num_keys"])
    slow = request(b'{"text": "slow"}')
    passed_on = request(b'{"text": "slow"}', b"Cache-Control: no-store")
    behind = request() + request(b"not json") + LAST
    for first, kind in ((slow, b"MISS"), (passed_on, b"BYPASS")):
        simulator.faults.append(Fault.HOLD)
        with proxy.connect() as client:
            client.sendall(first)
            until(lambda: simulator.waiting == 1)
            client.sendall(behind)
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(1)
            client.settimeout(30)
            simulator.release()
            received = read_all(client)
        assert re.findall(rb"(?mi)^X-Cache: (\w+)", received) == [kind, b"HIT", b"BYPASS"]
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"200", b"400", b"404"]
    left = (b'{"text": "left"}', STREAM)
    for body in left:
        simulator.faults.append(Fault.HOLD)
        with proxy.connect() as client:
            client.sendall(request(body) + request(b'{"text": "left behind"}'))
            until(lambda: simulator.waiting == 1)
        until(lambda: proxy.stats()["fetches_in_flight"] == 0)
        simulator.release()
        until(lambda: not simulator.waiting)
    for body in left:
        assert ask(proxy.url, body).headers["X-Cache"] == "MISS"
    assert not [sent for sent in simulator.received if b"left behind" in sent.body]
    assert "Traceback" not in proxy.log, proxy.log


ANSWER = Reply(200, (), b"answer", Outcome(Kind.MISS))
ANSWERED = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n"
    b"Cache-Status: sglang-cached; fwd=miss; stored\r\nX-Cache: MISS\r\n"
    b"X-Request-Id: x-0000000000\r\n\r\nanswer"
)


@asynccontextmanager
async def client_of(
    connections: Connections, receive: Callable[[], Any]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of a lane whose calls are answered by `receive`."""
    desk: Any = SimpleNamespace(
        ids=SimpleNamespace(next=lambda: b"x-0000000000"),
        begun=lambda started: None,
        receive=lambda ask: receive(),
        log=lambda *given: None,
        upstream_url="",
        replay_rate=0.0,
    )
    heads = HeadReader([("POST", "/generate")])
    async with clients_of(connections, 1, lambda c: open_lane(c, heads, desk)) as (client,):
        yield client


def test_fills_that_end_at_once() -> None:
    """A connection goes on when an answer is there before it is waited for; many of these, one
    behind the other, are not one call in another."""
    count = 1500

    async def answered() -> Reply:
        return ANSWER

    async def run(factory: Any) -> bytes:
        asyncio.get_running_loop().set_task_factory(factory)
        async with client_of(Connections(), answered) as (reader, writer):
            writer.write(request(b"{}") * count)
            return await reader.readexactly(count * len(ANSWERED))

    # From Python 3.12 on there are eager tasks.
    for factory in {None, getattr(asyncio, "eager_task_factory", None)}:
        assert asyncio.run(run(factory)) == ANSWERED * count


def test_an_answer_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A client is hung up, and not left to wait, where an error of ours breaks off its answer."""

    async def pieces() -> AsyncIterator[list[bytes]]:
        yield [b"data: 1\n\n"]
        raise ValueError("a fault of ours")

    async def answered() -> Streamed:
        outcome = Outcome(Kind.MISS)
        return Streamed((), pieces(), outcome, lambda is_complete: outcome, ExitStack())

    async def run() -> bytes:
        async with client_of(Connections(), answered) as (reader, writer):
            writer.write(request(b"{}"))
            return await reader.read(-1)

    received = asyncio.run(run())
    assert received.endswith(b"data: 1\n\n\r\n")
    assert "a fault of ours" in caplog.text


def test_what_waits_is_under_way() -> None:
    """A call that waits is under way, be it that nothing is fetched for it yet."""

    async def run() -> None:
        connections, asked, answer = Connections(), asyncio.Event(), asyncio.Event()

        async def answered() -> Reply:
            asked.set()
            await answer.wait()
            return ANSWER

        async with client_of(connections, answered) as (reader, writer):
            assert connections.busy == 0
            writer.write(request(b"{}")[:-1])
            while not connections.busy:
                await asyncio.sleep(0)
            assert not asked.is_set()
            writer.write(request(b"{}")[-1:])
            await asked.wait()
            assert connections.busy == 1
            answer.set()
            assert await reader.readexactly(len(ANSWERED)) == ANSWERED
            assert connections.busy == 0

    asyncio.run(run())


def test_streams_in_turn(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Streams on one connection come whole and in order, among hits, misses and what is passed on,
    whether they are new or stored; and a client that wants it closed has it closed behind one."""
    proxy = start_proxy(simulator.url)
    assert ask(proxy.url, STREAM).headers["X-Cache"] == "MISS"
    until(lambda: proxy.stats()["num_keys"] == 1)
    calls = [STREAM, STREAM.replace(b"streamed", b"new"), b'{"text": "streamed"}', b"not json"]
    data = b"".join(map(request, calls)) + request(STREAM, b"Connection: close") + request()
    with proxy.connect() as client:
        client.sendall(data)
        received = read_all(client)
    heads = re.findall(rb"HTTP/1.1 (\d+)[^\0]*?X-Cache: (\w+)", received)
    kinds = [b"HIT", b"MISS", b"HIT", b"BYPASS", b"HIT"]
    assert heads == [(b"400" if kind == b"BYPASS" else b"200", kind) for kind in kinds]
    assert received.count(b"data: [DONE]\n\n\r\n0\r\n\r\n") == 3
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
