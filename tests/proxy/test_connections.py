"""How long connections may take, with the limits made small by a script, and which go first."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import SimpleConnectionHandler

from sglang_cached_addon.proxy.connections import Connections, HeadTimer, Progress
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.conftest import WAYS
from tests.simulator import Fault, Simulator
from tests.wire.test_framing import head

SCRIPT = """
from mitmproxy import ctx
from mitmproxy.proxy import server
from sglang_cached_addon.proxy import connections

server.TCP_TIMEOUT = 1
connections.HEAD_SECONDS = {head}

def running():
    if "tcp_timeout" in ctx.options:
        ctx.options.update(tcp_timeout=1)
"""
JSON = {"Content-Type": "application/json"}


@pytest.fixture(params=["lane", "hooks"])
def ways(request: pytest.FixtureRequest) -> list[str]:
    return [] if request.param == "lane" else ["--set", "sglang_express=false"]


def hasty(start: StartProxy, url: str, folder: Path, *arguments: str, head: float = 30) -> Proxy:
    """A proxy that hangs up after a second."""
    script = folder / "hasty.py"
    script.write_text(SCRIPT.format(head=head))
    return start(url, "-s", str(script), *arguments)


def connect(proxy: Proxy) -> socket.socket:
    host, port = proxy.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_who_waits_waits(
    simulator: Simulator, start_proxy: StartProxy, tmp_path: Path, ways: list[str]
) -> None:
    """A generation that takes longer than ten minutes is waited for, however it was asked for."""
    proxy = hasty(start_proxy, simulator.url, tmp_path, *ways)
    sent = [
        {"text": "plain"},
        {"text": "stream", "stream": True},
        {"text": "bypass", "return_hidden_states": True, "stream": True},
        {"text": "chunks"},
        {"text": ["a", "list"]},
    ]

    def ask(body: dict[str, object]) -> requests.Response:
        data = json.dumps(body).encode()
        in_chunks = iter([data]) if body["text"] == "chunks" else data
        return requests.post(f"{proxy.url}/generate", data=in_chunks, headers=JSON, timeout=30)

    with ThreadPoolExecutor(len(sent)) as threads:
        simulator.faults.extend([Fault.HOLD] * len(sent))
        answers = [threads.submit(ask, body) for body in sent]
        until(lambda: simulator.waiting == len(sent))
        pass_by(2.5)
        simulator.release()
        assert [answer.result().status_code for answer in answers] == [200] * len(sent)
    assert simulator.waiting == 0


def test_who_waits_waits_in_http2(simulator: Simulator, tmp_path: Path) -> None:
    """So it is for a client of HTTP/2, of which only mitmproxy knows what it waits for."""
    script = tmp_path / "hasty.py"
    script.write_text(SCRIPT.format(head=30))
    proxy = WAYS["mitmdump"](simulator.url, tmp_path, "-s", str(script))
    proxy.wait_until_ready()
    url = proxy.url.replace("http:", "https:")
    body = json.dumps({"text": "bypass", "return_hidden_states": True, "stream": True})
    command = ["curl", "-sSk", "--http2", "-o", str(tmp_path / "answer"),
               "-w", "%{http_version} %{http_code}", "-H", "Content-Type: application/json",
               "-d", body, f"{url}/generate"]  # fmt: skip
    simulator.faults.append(Fault.HOLD)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        try:
            until(lambda: simulator.waiting == 1)
            pass_by(2.5)
            simulator.release()
            said, _ = client.communicate(timeout=20)
        finally:
            client.kill()
            proxy.stop()
    assert said == b"2 200"


def pass_by(seconds: float) -> None:
    """Lets time pass that something is to outlast."""
    began = time.monotonic()
    until(lambda: time.monotonic() - began > seconds)


def test_who_does_not_wait_is_hung_up(
    simulator: Simulator, start_proxy: StartProxy, tmp_path: Path, ways: list[str]
) -> None:
    """Connections that nobody uses are hung up; one in use is not cut for its past."""
    proxy = hasty(start_proxy, simulator.url, tmp_path, *ways)
    body = b'{"text": "late"}'
    fields = (b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    with connect(proxy) as silent, connect(proxy) as half, connect(proxy) as late:
        half.sendall(head(b"POST /generate HTTP/1.1", *fields) + body[:3])
        began = time.monotonic()
        # It was idle for most of a second when it asks for something that takes long.
        pass_by(0.7)
        simulator.faults.append(Fault.HOLD)
        late.sendall(head(b"POST /generate HTTP/1.1", *fields) + body)
        assert silent.recv(1) == b""
        assert half.recv(1) == b""
        pass_by(2)
        simulator.release()
        received = b"".join(iter(lambda: late.recv(1 << 16), b""))
        assert received.startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began > 3


def test_each_byte_begins_the_time_anew(
    simulator: Simulator, start_proxy: StartProxy, tmp_path: Path, ways: list[str]
) -> None:
    """A slow upload is read to its end."""
    proxy = hasty(start_proxy, simulator.url, tmp_path, *ways)
    body = b'{"text": "slow"}'
    fields = (b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    with connect(proxy) as client:
        client.sendall(head(b"POST /generate HTTP/1.1", *fields))
        for at in range(len(body)):
            pass_by(0.2)
            client.sendall(body[at : at + 1])
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


HEADS = [b"P", b"POST /generate HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nA: ", b"\r\nGET"]


def test_a_head_that_does_not_end(
    simulator: Simulator, start_proxy: StartProxy, tmp_path: Path, ways: list[str]
) -> None:
    """Nobody keeps a connection with a byte of a head now and then."""
    proxy = hasty(start_proxy, simulator.url, tmp_path, *ways, head=0.6)
    whole = head(b"GET /health HTTP/1.1", b"Host: x")

    def drip(data: bytes) -> bytes:
        """What comes back to who sends that, and a byte now and then."""
        received = b""
        with connect(proxy) as client:
            client.sendall(data)
            client.settimeout(0.1)
            while b" 408 " not in received:
                try:
                    received += client.recv(1 << 16)
                except TimeoutError:
                    client.sendall(b"a")
            client.settimeout(10)
            return received + b"".join(iter(lambda: client.recv(1 << 16), b""))

    sent = [before + begun for begun in HEADS for before in (b"", whole)]
    began = time.monotonic()
    with ThreadPoolExecutor(len(sent)) as threads:
        counts = [received.count(b"HTTP/1.1 ") for received in threads.map(drip, sent)]
    assert counts == [1, 2] * len(HEADS)
    assert time.monotonic() - began < 5
    # One that ends in time is not hurt by when the connection, or another head, began.
    with connect(proxy) as client:
        for _ in range(3):
            client.sendall(whole[:10])
            client.sendall(whole[10:])
            until(lambda: b'"up"}}' in client.recv(1 << 16))
            pass_by(0.4)


@dataclass
class At:
    """A stage that has come to something."""

    progress: Progress | None
    seen: int = 0
    is_idle: bool = False
    head: HeadTimer = field(default_factory=lambda: HeadTimer(lambda: None))


@asynccontextmanager
async def connected(connections: Connections, count: int) -> AsyncIterator[list[int]]:
    """Clients of a server that keeps their connections; which of them were hung up is in the
    list."""
    gone: list[int] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = ProxyMode.parse("reverse:http://x")
        assert connections.add(SimpleConnectionHandler(reader, writer, Options(), mode, {}))

    async def watch(number: int, reader: asyncio.StreamReader) -> None:
        await reader.read()
        gone.append(number)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    tasks, writers = [], []
    for number in range(count):
        reader, writer = await asyncio.open_connection(*address)
        writers.append(writer)
        tasks.append(asyncio.create_task(watch(number, reader)))
        while len(connections.all) <= number:
            await asyncio.sleep(0)
    yield gone
    for task in tasks:
        task.cancel()
    for connection in connections.all:
        connection.writer.close()
    for writer in writers:
        writer.close()
    server.close()


def test_who_goes_first() -> None:
    """Out of descriptors, nobody is hung up who waits for an answer, or sends."""

    async def run() -> None:
        connections = Connections()
        stages = [
            At(Progress.ANSWER),
            At(Progress.BODY),
            At(Progress.PIPE),
            At(Progress.IDLE),
            At(Progress.HEAD),
            At(Progress.IDLE),
            None,
        ]
        async with connected(connections, len(stages)) as gone:
            for connection, stage in zip(connections.all, stages, strict=True):
                connection.door = stage
            busy = connections.all[5]
            busy.handler.timeout_watchdog.register_activity()
            connections.all[3].handler.timeout_watchdog.last_activity -= 5
            stages[4].head.begin()  # type: ignore[union-attr]
            stages[4].head.since -= 100  # type: ignore[union-attr, operator]
            order = []
            for _ in range(4):
                before = len(gone)
                assert connections.hang_up(1) == 1
                while len(gone) == before:
                    await asyncio.sleep(0)
                order.append(gone[-1])
                for connection in list(connections.all):
                    if connection.writer.is_closing():
                        connections.remove(connection.handler.client)
            assert order == [4, 6, 3, 5]
            assert connections.hang_up(9) == 0

    asyncio.run(run())
