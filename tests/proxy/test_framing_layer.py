"""What waits behind a request, and for whom: in bounded memory, in order, and to an end."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import Proxy, StartProxy, read_all, until
from tests.e2e.conftest import LANES
from tests.hearing import Hearing, serving
from tests.simulator import Fault, Profile, Simulator, running
from tests.wire.test_framing import head

KNOWN = json.dumps({"text": "w" * 1000, "sampling_params": {"n": 64}}).encode()
JSON = b"Content-Type: application/json"
LAST = head(b"GET /cache/none HTTP/1.1", b"Host: x", b"Connection: close")


def ask(body: bytes, path: bytes = b"/generate") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return head(b"POST " + path + b" HTTP/1.1", b"Host: x", JSON, length) + body


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with running(Profile()) as simulator:
        yield simulator


@pytest.fixture(params=LANES)
def front(request: pytest.FixtureRequest, upstream: Simulator, start_proxy: StartProxy) -> Proxy:
    return start_proxy(upstream.url, *LANES[request.param])


def test_large_hits_that_nobody_reads(front: Proxy) -> None:
    """Answers to somebody who asks and asks and does not read take bounded memory; when they are
    read after all, each is there."""
    with front.connect() as client:
        client.sendall(ask(KNOWN))
        until(lambda: front.stats()["num_keys"])
        before = front.peak()
        count = 400
        sender = threading.Thread(target=client.sendall, args=(ask(KNOWN) * count + LAST,))
        sender.start()
        # It goes on with others, and nobody reads.
        for _ in range(3):
            assert front.stats()["num_keys"] == 1
        assert front.peak() - before < 24 << 20
        received = read_all(client)
        sender.join()
    assert len(received) > 20 << 20
    assert received.count(b"HTTP/1.1 200") == count + 1
    assert front.peak() - before < 48 << 20


def test_behind_what_waits(front: Proxy, upstream: Simulator) -> None:
    """What somebody sends behind a request that waits takes bounded memory, and is not answered
    before it."""
    upstream.faults.append(Fault.HOLD)
    before = front.peak()
    bodies = [json.dumps({"text": f"{k}" * 30_000}).encode() for k in range(1000)]
    with front.connect() as client:
        client.sendall(ask(b'{"text": "waits", "rid": "w"}'))
        until(lambda: upstream.waiting == 1)
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):
            for body in bodies:
                client.sendall(ask(body))
        assert front.stats()["num_keys"] == 0
        assert front.peak() - before < 24 << 20
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(20)
        upstream.release()
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    until(lambda: front.stats()["fetches_in_flight"] == 0)


@pytest.fixture
def unreachable() -> Iterator[Hearing]:
    """A server that lets nobody in until it is served: no more clients fit into its queue."""
    with ExitStack() as stack:
        server = Hearing()
        stack.callback(server.server_close)
        server.socket.listen(0)
        is_let_in = True
        while is_let_in:
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.server_address)
            is_let_in = bool(select.select([], [client], [], 0.5)[1])
        yield server


@pytest.mark.parametrize("way", LANES)
def test_before_upstream_is_there(way: str, unreachable: Hearing, start_proxy: StartProxy) -> None:
    """A body that comes before there is a connection to upstream takes bounded memory, and goes on
    as a whole when there is one."""
    front = start_proxy(unreachable.url, *LANES[way])
    size, sent, before = 48 << 20, 0, front.peak()
    with front.connect() as client:
        client.sendall(head(b"POST /v1/up HTTP/1.1", b"Host: x", b"Content-Length: %d" % size))
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += client.send(bytes(1 << 20))
        assert front.peak() - before < 14 << 20
        with serving(unreachable):
            client.settimeout(60)
            while sent < size:
                sent += client.send(bytes(min(1 << 20, size - sent)))
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
            (heard,) = unreachable.asked("/v1/up")
            assert len(heard.body) == size
        assert front.peak() - before < 14 << 20


def send(client: socket.socket, pieces: list[bytes]) -> None:
    try:
        for piece in pieces:
            client.sendall(piece)
    except OSError:
        pass  # the client is closed


def test_refused_in_a_body(front: Proxy, upstream: Simulator) -> None:
    """A body that breaks the rules in its middle is refused, and nobody waits for its end."""
    for path in (b"/v1/nowhere", b"/generate", b"/health"):
        line = b"POST " + path + b" HTTP/1.1"
        begins = head(line, b"Host: x", JSON, b"Transfer-Encoding: chunked")
        with front.connect() as client:
            for piece in (begins + b"2\r\n{}\r\n", b"bad\n", b"x" * 100_000):
                client.sendall(piece)
            received = read_all(client)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1
    assert front.stop() == 0
    assert "Traceback" not in front.log


def test_too_large_for_our_own_routes(front: Proxy) -> None:
    """What only we read is refused above a bound, and not kept."""
    before = front.peak()
    for path in (b"/health", b"/cache/stats", b"/abort_request"):
        line = b"POST " + path + b" HTTP/1.1"
        for data in (
            [head(line, b"Host: x", b"Content-Length: 300000000")],
            [
                head(line, b"Host: x", b"Transfer-Encoding: chunked"),
                *[b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"] * 40,
            ],
        ):
            with front.connect() as client:
                sender = threading.Thread(target=send, args=(client, data))
                sender.start()
                assert read_all(client).startswith(b"HTTP/1.1 413 ")
                sender.join()
    assert front.peak() - before < 24 << 20
