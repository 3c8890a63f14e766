"""Other keys, other names, other weights: on the simulator, or on servers that this starts.

`make test-sglang URL=... START='python -m sglang.launch_server ... --port {port}'` starts real
ones (SGLANG_START), with more options behind those. Nothing here touches a server that somebody
else has started.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.test_sglang import generate, prompt
from tests.simulator import Profile, Simulator, running

START_SECONDS = 300.0
KEY = {"Authorization": "Bearer right-key"}


class Server(Protocol):
    """A server that can be started again with other options."""

    url: str

    def start(self, **options: str) -> None: ...

    def stop(self) -> None: ...


class Simulated:
    """The simulator, whose profile has SGLang's option names."""

    def __init__(self, simulator: Simulator) -> None:
        self.url = simulator.url
        self._simulator = simulator
        simulator.down()

    def start(self, **options: str) -> None:
        self._simulator.up(**{"api_key": "", "served_model_name": "", **options})

    def stop(self) -> None:
        self._simulator.down()


class Real:
    """A command that starts a server."""

    def __init__(self, command: str, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = shlex.split(command.format(port=port))
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **options: str) -> None:
        given = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", v)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [*self._command, *given], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                requests.get(f"{self.url}/health", timeout=30).raise_for_status()
                return
            except requests.RequestException:
                time.sleep(0.5)
        pytest.fail(self._log.read_text()[-2000:])

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if command := os.environ.get("SGLANG_START"):
        real = Real(command, tmp_path / "server.log")
        yield real
        real.stop()
    elif os.environ.get("SGLANG_URL"):
        pytest.skip("START=... is not given: no server can be started")
    else:
        with running(Profile()) as simulator:
            yield Simulated(simulator)


def ask(proxy: Proxy, body: Any, **headers: str) -> requests.Response:
    return requests.post(f"{proxy.url}/generate", json=body, headers=headers, timeout=60)


def test_updated_weights(server: Server, start_proxy: StartProxy) -> None:
    """New weights do not answer with what the old ones said. On a server of its own: it is not
    what it was afterwards."""
    server.start()
    proxy = start_proxy(server.url)
    body = generate(prompt())
    assert [ask(proxy, body).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
    model = requests.get(f"{proxy.url}/model_info", timeout=30).json()["model_path"]
    update = requests.post(
        f"{proxy.url}/update_weights_from_disk", json={"model_path": model}, timeout=120
    )
    assert update.json()["success"]
    assert [ask(proxy, body).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]


def test_keys(server: Server, start_proxy: StartProxy) -> None:
    """What is stored is for who has the key; others get the server's own refusal."""
    server.start(api_key="right-key")
    proxy = start_proxy(server.url)
    body = generate(prompt())
    refused = ask(proxy, body)
    direct = requests.post(f"{server.url}/generate", json=body, timeout=60)
    assert (refused.status_code, refused.content) == (direct.status_code, direct.content)
    assert refused.status_code == 401
    assert [ask(proxy, body, **KEY).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": "right-key"}):
        assert ask(proxy, body, **wrong).status_code == 401
    server.stop()
    assert ask(proxy, body, **KEY).headers["X-Cache"] == "HIT"
    assert ask(proxy, body).status_code == 502
    folder = Path(proxy.stats()["cache_file"]).parent
    assert proxy.stop() == 0
    kept = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"right-key" not in kept + proxy.log.encode() + proxy.banner.encode()


def test_another_model(server: Server, start_proxy: StartProxy) -> None:
    """Each model has its own answers, and finds them again when it comes back."""
    server.start()
    proxy = start_proxy(server.url, "--poll-seconds", "0.5")
    body = generate(prompt())
    first = ask(proxy, body)
    assert first.headers["X-Cache"] == "MISS"
    assert proxy.stats()["total_responses"] == 1
    names = [proxy.info()["model"]["name"]]
    for name, kind in (("other", "MISS"), ("", "HIT"), ("other", "HIT")):
        server.stop()
        server.start(**({"served_model_name": name} if name else {}))
        wanted = name or names[0]
        # Each request has the proxy look who is there, at the latest after the poll interval.
        until(lambda w=wanted: ask(proxy, generate("x")).ok and proxy.info()["model"]["name"] == w)
        answer = ask(proxy, body)
        assert answer.headers["X-Cache"] == kind
        assert (answer.content == first.content) == (name == "")
        assert proxy.stats()["fetches_in_flight"] == 0
