"""Requests that are odd, too long, or meant to be read in two ways, on raw sockets: refused before
mitmproxy reads them, or seen by upstream exactly as they were meant; in every way in."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator

import pytest
import requests

from tests.conftest import Proxy, read_all
from tests.e2e.conftest import StartFront
from tests.e2e.test_large import worked
from tests.hearing import Hearing, hearing
from tests.tables import each
from tests.wire.test_framing import ENDLESS, HEAVY, PLAIN, REFUSED, head

ROUTE = "/v1/echo"
"""A route that nobody knows: passed on."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Hearing]:
    with hearing() as server:
        yield server


@pytest.fixture(scope="module")
def front(upstream: Hearing, start_way: StartFront) -> Proxy:
    return start_way(upstream.url)


def talk(front: Proxy, *pieces: bytes) -> bytes:
    """Sends pieces; all that comes back until the proxy hangs up."""
    with front.connect() as client:

        def send() -> None:
            try:
                for piece in pieces:
                    client.sendall(piece)
            except OSError:
                pass  # it has heard enough

        sender = threading.Thread(target=send)
        sender.start()
        received = read_all(client)
        sender.join()
    return received


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", received)]


def last(method: bytes = b"GET") -> bytes:
    return head(method + b" /v1/last HTTP/1.1", b"Host: x", b"Connection: close")


@each(("data", "status"), REFUSED.values())
def test_refused(data: bytes, status: int, upstream: Hearing, front: Proxy) -> None:
    """What can be read in two ways reaches nobody who could read it in the other one."""
    upstream.heard.clear()
    upstream.errors.clear()
    received = talk(front, data, last())
    assert statuses(received) == [status]
    start, _, body = received.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in start
    assert json.loads(body)["error"]["code"] == status
    assert not [heard for heard in upstream.heard if heard.target in ("/", "/v1/last")]
    assert not upstream.errors


@each("name", ["a bare LF", "leading zeros", "a long head"])
def test_refused_behind_others(name: str, upstream: Hearing, front: Proxy) -> None:
    """Answers come in the order of their requests."""
    upstream.heard.clear()
    data, status = REFUSED[name]
    before = head(b"GET /v1/one HTTP/1.1", b"Host: x") + head(b"GET /health HTTP/1.1", b"Host: x")
    received = talk(front, before + data + last())
    assert statuses(received) == [200, 200, status]
    assert len(upstream.asked("/v1/one")) == 1
    assert not upstream.asked("/v1/last")


@each(("begins", "goes_on", "status"), ENDLESS.values())
def test_endless(begins: bytes, goes_on: bytes, status: int, front: Proxy) -> None:
    """A head that never ends does not fill the memory."""
    received = talk(front, begins, *[goes_on * 256] * 1000)
    assert statuses(received) == [status]


@each("name", HEAVY)
def test_heavy(name: str, front: Proxy) -> None:
    """One client's head holds nobody else up."""
    thread = threading.Thread(target=talk, args=(front, HEAVY[name] + last()))
    began = worked(front)
    thread.start()
    assert requests.get(f"{front.url}/health", timeout=60).ok
    assert worked(front) - began < 5
    thread.join()


MEANT = {
    "no body": (head(b"GET /v1/echo HTTP/1.1", b"Host: x"), b""),
    "a body": (
        head(b"POST /v1/echo HTTP/1.1", b"Host: x", b"Content-Length: 5") + b"hello",
        b"hello",
    ),
    "a body like a request": (
        head(b"POST /v1/echo HTTP/1.1", b"Host: x", b"Content-Length: 37")
        + b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"[:37],
        b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"[:37],
    ),
    "chunks": (
        head(b"POST /v1/echo HTTP/1.1", b"Host: x", b"Transfer-Encoding: Chunked")
        + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"hello",
    ),
    "trailers": (
        head(
            b"POST /v1/echo HTTP/1.1",
            b"Host: x",
            b"TE: trailers",
            b"Trailer: A",
            b"Transfer-Encoding: chunked",
        )
        + b"5\r\nhello\r\n0\r\nA: 1\r\nContent-Length: 100\r\n\r\n",
        b"hello",
    ),
    "chunks like a request": (
        head(b"POST /v1/echo HTTP/1.1", b"Host: x", b"Transfer-Encoding: chunked")
        + b"20\r\n0\r\n\r\nGET /v1/smuggled HTTP/1.1\r\n\r\n0\r\n\r\n",
        b"0\r\n\r\nGET /v1/smuggled HTTP/1.1\r\n",
    ),
    "an upgrade to h2c with a body": (
        head(
            b"POST /v1/echo HTTP/1.1",
            b"Host: x",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
            b"Content-Length: 5",
        )
        + b"hello",
        b"hello",
    ),
    "an expectation": (
        head(b"POST /v1/echo HTTP/1.1", b"Host: x", b"Expect: 100-continue", b"Content-Length: 5")
        + b"hello",
        b"hello",
    ),
    "an absolute target": (head(b"GET http://y/v1/echo HTTP/1.1", b"Host: x"), b""),
}


@each(("data", "body"), MEANT.values())
@each("size", [1 << 20, 1])
def test_meant(data: bytes, body: bytes, size: int, upstream: Hearing, front: Proxy) -> None:
    """Upstream sees the requests that the client has sent, and the connection goes on."""
    upstream.heard.clear()
    upstream.errors.clear()
    way = data + data + last()
    received = talk(front, *[way[at : at + size] for at in range(0, len(way), size)])
    assert [status for status in statuses(received) if status != 100] == [200, 200, 200]
    *echoes, end = [
        heard
        for heard in upstream.heard
        if heard.target.rpartition("/")[2] in ("echo", "last", "smuggled")
    ]
    assert [heard.target.removeprefix("http://y") for heard in echoes] == [ROUTE, ROUTE]
    assert [heard.body for heard in echoes] == [body, body]
    assert end.target == "/v1/last"
    assert not [
        field
        for heard in echoes
        for field in ("upgrade", "http2-settings")
        if field in heard.fields
    ]
    assert not upstream.errors


KNOWN = json.dumps({"text": "odd", "sampling_params": {"max_new_tokens": 4}}).encode()


def test_trailers_on_known_routes(upstream: Hearing, front: Proxy) -> None:
    """A request with trailers gets an answer, and the proxy does not wait for it when it ends."""
    fields = (b"Host: x", b"Content-Type: application/json", b"Transfer-Encoding: chunked")
    data = head(b"POST /generate HTTP/1.1", *fields) + b"%x\r\n%b\r\n0\r\nA: 1\r\n\r\n" % (
        len(KNOWN),
        KNOWN,
    )
    assert statuses(talk(front, data + last())) == [200, 200]


@each("cut", [1, 20, 60, -1])
def test_who_leaves_in_a_request(cut: int, upstream: Hearing, front: Proxy) -> None:
    """Half a request is neither a whole one nor waited for."""
    upstream.heard.clear()
    data, _ = MEANT["chunks"]
    with front.connect() as client:
        client.sendall(data[:cut])
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) in (b"", b"HTTP/1.1 200 OK\r\n")
    assert not upstream.asked(ROUTE)


def test_known_and_odd_are_one(upstream: Hearing, front: Proxy) -> None:
    """PLAIN requests of every kind are answered, one behind the other, in order."""
    wanted = [data for name, data in PLAIN.items() if name not in ("HTTP/1.0", "WebSocket")]
    received = talk(front, b"".join(wanted) + last())
    assert len(statuses(received)) == len(wanted) + 1
    assert not upstream.errors
