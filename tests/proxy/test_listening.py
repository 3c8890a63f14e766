"""Clients that come all at once, or more of them than there are file descriptors."""

from __future__ import annotations

import resource
import selectors
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import BODIES
from tests.simulator import Fault, Simulator
from tests.tables import each

SOMAXCONN = int(Path("/proc/sys/net/core/somaxconn").read_text())
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def limit(proxy: Proxy, count: int) -> None:
    """Leaves it so many descriptors, whatever it had."""
    resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (count, count))


def descriptors(proxy: Proxy) -> int:
    return len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


@contextmanager
def connected(proxy: Proxy, count: int, first: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections on which that has been sent."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(proxy.connect(30)))
            clients[-1].sendall(first)
        yield clients


@pytest.mark.skipif(SOMAXCONN < 2048, reason="net.core.somaxconn allows less")
def test_many_at_once(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Hundreds of clients that come at once are all let in, whatever limit of descriptors a shell
    gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        proxy = start_proxy(simulator.url)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    most = min(hard, 65_536)
    assert resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE) == (most, hard)
    parts = urlsplit(proxy.url)
    place = (parts.hostname, parts.port)
    proxy.process.send_signal(signal.SIGSTOP)  # it is busy, say
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        try:
            clients = [stack.enter_context(socket.socket()) for _ in range(500)]
            for client in clients:
                client.setblocking(False)
                client.connect_ex(place)
                selector.register(client, selectors.EVENT_WRITE)
            while selector.get_map():
                ready = selector.select(10)
                assert ready, f"{len(selector.get_map())} are not connected"
                for key, _ in ready:
                    selector.unregister(key.fileobj)
        finally:
            proxy.process.send_signal(signal.SIGCONT)
        for client in clients:
            client.setblocking(True)
            client.settimeout(30)
            client.sendall(HEALTH)
        assert all(client.recv(100).startswith(b"HTTP/1.1 200") for client in clients)


def test_more_calls_than_descriptors(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Misses and what is passed on wait for descriptors and are answered, and clients leave enough
    to ask upstream."""
    proxy = start_proxy(simulator.url, "--no-collapse")
    limit(proxy, 128)
    simulator.faults.extend([Fault.HOLD] * 90)

    def ask(n: int) -> requests.Response:
        if n % 3 == 2:
            return requests.get(f"{proxy.url}/v1/models", timeout=60)
        body = {**BODIES["/generate"], "text": f"text {n}"}
        return requests.post(f"{proxy.url}/generate", json=body, timeout=60)

    with ThreadPoolExecutor(150) as pool:
        answers = [pool.submit(ask, n) for n in range(150)]
        until(lambda: simulator.waiting >= 20)
        until(lambda: "128 file descriptors are not enough" in proxy.log)
        simulator.faults.clear()
        simulator.release()
        assert {answer.result().status_code for answer in answers} == {200}
    warnings = [line for line in proxy.log.splitlines() if not line.startswith("[Cache ")]
    assert len(warnings) == 1


@each("said", [b"", b"POST /gen", HEALTH], ["nothing", "half", "idle"])
def test_clients_that_stay(
    said: bytes, simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """Clients that nobody waits for keep no others out; the log says it once, and all is well again
    when they are gone."""
    proxy = start_proxy(simulator.url, cache=tmp_path / str(len(said)))
    limit(proxy, 128)
    before = len(proxy.log.splitlines())
    with connected(proxy, 150, said.replace(b"Connection: close\r\n", b"")):
        until(lambda: descriptors(proxy) >= 94)
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(requests.get, f"{proxy.url}/health", timeout=30) for _ in range(5)]
            assert {answer.result().status_code for answer in asked} == {200}
    (line,) = proxy.log.splitlines()[before:]
    assert "128 file descriptors are not enough" in line
    until(lambda: descriptors(proxy) < 40)
    assert requests.get(f"{proxy.url}/v1/models", timeout=30).status_code == 200
    assert proxy.stop() == 0
