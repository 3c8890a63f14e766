"""How long connections may take, with the limits made small by a script, and which go first."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import SimpleConnectionHandler

from sglang_cached_addon.proxy.connections import ClientConnection, Connections, HeadTimer, Progress
from tests.conftest import Proxy, StartProxy, end, read_all, until
from tests.e2e.conftest import LANES, WAYS
from tests.simulator import Fault, Simulator
from tests.wire.test_framing import head

SCRIPT = """
from mitmproxy import ctx
from mitmproxy.proxy import server
from sglang_cached_addon.proxy import connections

server.TCP_TIMEOUT = {idle}
connections.HEAD_SECONDS = {head}

def running():
    if "tcp_timeout" in ctx.options:
        ctx.options.update(tcp_timeout={idle})
"""
JSON = {"Content-Type": "application/json"}
StartHasty = Callable[..., list[Proxy]]


@pytest.fixture
def start_hasty(start_proxy: StartProxy, tmp_path: Path) -> StartHasty:
    """Starts proxies that wait for no more seconds than that: with the fast lane, and through the
    hooks."""

    def start(url: str, idle: int = 2, head: float = 30) -> list[Proxy]:
        script = tmp_path / "hasty.py"
        script.write_text(SCRIPT.format(idle=idle, head=head))
        return [
            start_proxy(url, "-s", str(script), *arguments, cache=tmp_path / name)
            for name, arguments in LANES.items()
        ]

    return start


def request(body: bytes) -> bytes:
    fields = (b"Host: x", b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    return head(b"POST /generate HTTP/1.1", *fields) + body


def pass_by(seconds: float) -> None:
    """Lets time pass that something is to outlast."""
    began = time.monotonic()
    until(lambda: time.monotonic() - began > seconds)


def test_who_waits_waits(simulator: Simulator, start_hasty: StartHasty) -> None:
    """A generation that takes longer than ten minutes is waited for, however it was asked for."""
    proxies = start_hasty(simulator.url)
    sent = [
        {"text": "plain"},
        {"text": "stream", "stream": True},
        {"text": "bypass", "return_hidden_states": True, "stream": True},
        {"text": "chunks"},
        {"text": ["a", "list"]},
    ]

    def ask(proxy: Proxy, body: dict[str, object]) -> requests.Response:
        data = json.dumps(body).encode()
        in_chunks = iter([data]) if body["text"] == "chunks" else data
        return requests.post(f"{proxy.url}/generate", data=in_chunks, headers=JSON, timeout=30)

    count = len(sent) * len(proxies)
    with ThreadPoolExecutor(count) as threads:
        simulator.faults.extend([Fault.HOLD] * count)
        answers = [threads.submit(ask, proxy, body) for proxy in proxies for body in sent]
        until(lambda: simulator.waiting == count)
        pass_by(3)
        simulator.release()
        assert [answer.result().status_code for answer in answers] == [200] * count
    assert simulator.waiting == 0


def test_who_waits_waits_in_http2(simulator: Simulator, tmp_path: Path) -> None:
    """So it is for a client of HTTP/2, of which only mitmproxy knows what it waits for."""
    script = tmp_path / "hasty.py"
    script.write_text(SCRIPT.format(idle=2, head=30))
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
            pass_by(3)
            simulator.release()
            said, _ = client.communicate(timeout=20)
        finally:
            client.kill()
            end(proxy)
    assert said == b"2 200"


def test_who_does_not_wait_is_hung_up(simulator: Simulator, start_hasty: StartHasty) -> None:
    """Connections that nobody uses are hung up; one in use is not cut for its past."""
    proxies = start_hasty(simulator.url, idle=3)
    whole = request(b'{"text": "late"}')
    simulator.faults.extend([Fault.HOLD] * len(proxies))
    with ExitStack() as stack:
        silent, half, late = (
            [stack.enter_context(proxy.connect()) for proxy in proxies] for _ in range(3)
        )
        for client in half:
            client.sendall(whole[:-3])
        # They were idle for a third of their time when they ask for something that takes long.
        pass_by(1)
        for client in late:
            client.sendall(whole)
        assert [client.recv(1) for client in silent + half] == [b""] * 4
        pass_by(1.5)
        simulator.release()
        for client in late:
            assert read_all(client).startswith(b"HTTP/1.1 200")


def test_each_byte_begins_the_time_anew(simulator: Simulator, start_hasty: StartHasty) -> None:
    """A slow upload is read to its end, however long it takes."""
    proxies = start_hasty(simulator.url)
    whole = request(b'{"text": "slow"}')
    with ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect()) for proxy in proxies]
        for client in clients:
            client.sendall(whole[:-8])
        for at in range(len(whole) - 8, len(whole)):
            pass_by(0.4)
            for client in clients:
                client.sendall(whole[at : at + 1])
        for client in clients:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


HEADS = [b"P", b"POST /generate HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nA: ", b"\r\nGET"]


def test_a_head_that_does_not_end(simulator: Simulator, start_hasty: StartHasty) -> None:
    """Nobody keeps a connection with a byte of a head now and then; a head that ends in time is not
    hurt by when the connection, or another head, began."""
    proxies = start_hasty(simulator.url, head=1)
    whole = head(b"GET /health HTTP/1.1", b"Host: x")

    def drip(proxy: Proxy, data: bytes) -> bytes:
        """What comes back to who sends that, and a byte now and then."""
        received = b""
        with proxy.connect() as client:
            client.sendall(data)
            client.settimeout(0.1)
            while b" 408 " not in received:
                try:
                    received += client.recv(1 << 16)
                except TimeoutError:
                    client.sendall(b"a")
            client.settimeout(30)
            return received + read_all(client)

    sent = [before + begun for begun in HEADS for before in (b"", whole)]
    with ThreadPoolExecutor(len(sent) * len(proxies)) as threads:
        received = [threads.submit(drip, proxy, data) for proxy in proxies for data in sent]
        counts = [one.result(30).count(b"HTTP/1.1 ") for one in received]
    assert counts == [1, 2] * len(HEADS) * len(proxies)
    with ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect()) for proxy in proxies]
        for _ in range(3):
            for client in clients:
                client.sendall(whole[:10])
                client.sendall(whole[10:])
                until(lambda client=client: b'"up"}}' in client.recv(1 << 16))
            pass_by(0.4)


@dataclass
class At:
    """A stage that has come to something."""

    progress: Progress | None
    seen: int = 0
    is_idle: bool = False
    head: HeadTimer = field(default_factory=lambda: HeadTimer(bool))


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def clients_of(
    connections: Connections, count: int, opened: Callable[[ClientConnection], object] = bool
) -> AsyncIterator[list[Client]]:
    """Clients of a server that notes their connections, and shows each to `opened`."""
    made: list[ClientConnection] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = ProxyMode.parse("reverse:http://x")
        connection = connections.add(SimpleConnectionHandler(reader, writer, Options(), mode, {}))
        assert connection
        made.append(connection)
        opened(connection)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    clients: list[Client] = []
    async with asyncio.timeout(20):
        for _ in range(count):
            address = server.sockets[0].getsockname()[:2]
            clients.append(await asyncio.open_connection(*address))
            while len(made) < len(clients):
                await asyncio.sleep(0)
        yield clients
    for connection in made:
        connection.transport.abort()
    for _, writer in clients:
        writer.close()
    server.close()


def test_who_goes_first() -> None:
    """Out of descriptors, nobody is hung up who waits for an answer, or sends."""
    late = HeadTimer(bool)
    late.since = time.time() - 100
    stages = [
        At(Progress.ANSWER),
        At(Progress.BODY),
        At(Progress.PIPE),
        At(Progress.IDLE),
        At(Progress.HEAD, head=late),
        At(Progress.IDLE),
        None,
    ]

    async def run() -> list[int]:
        connections, order = Connections(), []
        opened: list[ClientConnection] = []
        async with clients_of(connections, len(stages), opened.append) as clients:
            for connection, stage in zip(opened, stages, strict=True):
                connection.door = stage
            opened[5].handler.timeout_watchdog.register_activity()
            opened[3].handler.timeout_watchdog.last_activity -= 5
            while connections.hang_up(1):
                gone = [k for k, c in enumerate(opened) if c.transport.is_closing()]
                order += set(gone).difference(order)
                assert len(order) == len(gone)
                connections.remove(opened[order[-1]].handler.client)
                assert await clients[order[-1]][0].read() == b""
        return order

    assert asyncio.run(run()) == [4, 6, 3, 5]
