"""The beginning and the end of a proxy: banner, stop, drain, restart, kill."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import Proxy, StartProxy, corpus, until
from tests.replayer import Replayer
from tests.simulator import Fault, Profile, Simulator, running
from tests.upstream.scripted import dead_url


def request(text: str) -> dict[str, Any]:
    return {"text": text, "sampling_params": {"temperature": 0.9, "max_new_tokens": 4}}


def post(url: str, text: str = "one two", **kwargs: Any) -> requests.Response:
    return requests.post(f"{url}/generate", json=request(text), timeout=30, **kwargs)


def free_port() -> int:
    port = urlsplit(dead_url()).port
    assert port
    return port


def refuses(url: str) -> bool:
    """Whether new connections are refused, or cut down with the listener that they waited for."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), 5).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def line_of(proxy: Proxy, word: str) -> str:
    """The banner's line that begins with a word."""
    assert proxy.process.stdout
    while not (match := re.search(rf"^  {word} +(.+)\n", proxy.banner, re.M)):
        data = os.read(proxy.process.stdout.fileno(), 65536)
        assert data, proxy.log
        proxy.banner += data.decode()
    return match[1]


@contextmanager
def serving(replayer: Replayer) -> Iterator[Replayer]:
    with replayer:
        thread = threading.Thread(target=replayer.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield replayer
        finally:
            replayer.shutdown()
            thread.join()


# Start


def test_banner(simulator: Simulator, proxy: Proxy) -> None:
    """People are told where it listens, what is behind it and where answers are."""
    assert re.search(rf"^  listening  {proxy.url}$", proxy.banner, re.M)
    assert re.search(rf"^  upstream   {simulator.url}$", proxy.banner, re.M)
    assert re.search(
        r"^  cache      \S+/cache/cache\.jsonl \(0 entries, 0 samples\)$", proxy.banner, re.M
    )
    assert re.fullmatch(r"simulated \([0-9a-f]{16}\)", line_of(proxy, "model"))
    assert proxy.log == ""


def test_upstream_absent(start_proxy: StartProxy) -> None:
    """Without its upstream the proxy starts, warns once, and tells clients why they get nothing."""
    url = dead_url()
    proxy = start_proxy(url)
    until(lambda: "warning" in proxy.log)
    assert len(proxy.log.splitlines()) == 1
    assert url in proxy.log
    answer = post(proxy.url)
    assert answer.status_code == 502
    assert answer.headers["Content-Type"] == "application/json"
    assert url in answer.json()["error"]["message"]
    assert requests.get(f"{proxy.url}/health", timeout=10).json()["upstream"]["state"] == "down"
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log


def test_upstream_is_something_else(start_proxy: StartProxy) -> None:
    """A wrong port, of SSH say, is a warning."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.settimeout(10)
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        proxy = start_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}", ready=False)
        until(lambda: "warning" in proxy.log or "Traceback" in proxy.log)
        thread.join(20)
        assert "Traceback" not in proxy.log
        assert proxy.stop() == 0


def test_upstream_that_says_nothing(start_proxy: StartProxy) -> None:
    """The proxy starts before its upstream has spoken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert "  model" not in proxy.banner
        assert requests.get(f"{proxy.url}/health", timeout=10).status_code == 200


def test_nobody_is_let_in_too_early(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Nobody is let in before the store is open and upstream was asked who it is."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start_proxy(upstream, "--port", str(port), ready=False)
        listener.settimeout(20)
        asked, _ = listener.accept()
        assert (tmp_path / "cache" / "cache.lock").exists()
        assert refuses(f"http://127.0.0.1:{port}")
        asked.close()
        until(lambda: not refuses(f"http://127.0.0.1:{port}"))


# Stop and restart


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_stop(number: signal.Signals, simulator: Simulator, start_proxy: StartProxy) -> None:
    """A stop lets nobody in, answers what is under way, keeps it, and looks like no crash."""
    proxy = start_proxy(simulator.url)
    texts = [f"text {n}" for n in range(12)]
    simulator.faults.extend([Fault.HOLD] * len(texts))
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = [pool.submit(post, proxy.url, text) for text in texts]
        try:
            until(lambda: simulator.running == len(texts))
            proxy.process.send_signal(number)
            until(lambda: refuses(proxy.url))
            assert proxy.process.poll() is None
        finally:
            simulator.release()
        for answer in answers:
            assert answer.result().status_code == 200
            assert answer.result().headers["X-Cache"] == "MISS"
            assert answer.result().json()["meta_info"]
        assert proxy.process.wait(20) == 0
    assert "Traceback" not in proxy.log
    asked = len(simulator.received)
    again = start_proxy(simulator.url)
    assert "(12 entries, 12 samples)" in again.banner
    for text, answer in zip(texts, answers, strict=True):
        hit = post(again.url, text)
        assert hit.headers["X-Cache"] == "HIT"
        assert hit.json()["text"] == answer.result().json()["text"]
    assert {r.path for r in simulator.received[asked:]} <= {"/model_info", "/server_info"}


@pytest.mark.parametrize("express", ["true", "false"], ids=["lane", "hooks"])
def test_stop_while_a_call_arrives(
    express: str, simulator: Simulator, start_proxy: StartProxy
) -> None:
    """What is on its way when the end begins is answered, too."""
    proxy = start_proxy(simulator.url, "--set", f"sglang_express={express}")
    assert post(proxy.url, "a").status_code == 200
    body = b'{"text": "%b", "sampling_params": {"temperature": 0.9, "max_new_tokens": 4}}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    known, new = (
        b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body % text), body % text)
        for text in (b"a", b"b")
    )
    parts = urlsplit(proxy.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), 20) as client:
        client.sendall(known + new[:-10])
        hear(client, b"X-Cache: HIT")
        proxy.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(proxy.url))
        client.sendall(new[-10:])
        hear(client, b"X-Cache: MISS")
    assert proxy.process.wait(20) == 0
    assert "Traceback" not in proxy.log


def hear(client: socket.socket, words: bytes) -> None:
    """Returns when the proxy has said this, however it parts what it says."""
    said = b""
    while words not in said:
        data = client.recv(1 << 16)
        assert data, said
        said += data


def asks_once(url: str) -> bool:
    """Whether a client that comes now is let in."""
    try:
        return requests.get(f"{url}/health", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


def test_drain_ends(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A call that never ends does not keep the proxy from ending."""
    proxy = start_proxy(simulator.url, "--drain", "0.5")
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, proxy.url)
        try:
            until(lambda: simulator.running)
            proxy.process.send_signal(signal.SIGTERM)
            assert proxy.process.wait(15) == 0
        finally:
            simulator.release()
        assert isinstance(answer.exception(), requests.RequestException)


def test_drain_accept(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A balancer that has not heard of the end gets answers for a while, and the end comes."""
    proxy = start_proxy(simulator.url, "--drain-accept", "2")
    proxy.process.send_signal(signal.SIGTERM)
    since = time.monotonic()
    while time.monotonic() < since + 1:
        assert asks_once(proxy.url)
        assert post(proxy.url).status_code == 200
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, proxy.url, "another")
        try:
            until(lambda: refuses(proxy.url))
            assert simulator.running == 1
            assert proxy.process.poll() is None
        finally:
            simulator.release()
        assert answer.result().headers["X-Cache"] == "MISS"
        assert proxy.process.wait(15) == 0
    assert "Traceback" not in proxy.log


def test_stop_twice_while_it_accepts(start_proxy: StartProxy) -> None:
    """Somebody in a hurry does not wait for balancers."""
    proxy = start_proxy(dead_url(), "--drain-accept", "50")
    proxy.process.send_signal(signal.SIGTERM)
    assert asks_once(proxy.url)
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(15) == 0


def test_stop_with_idle_clients(proxy: Proxy) -> None:
    """A client that keeps its connection does not keep the proxy from ending."""
    with requests.Session() as session:
        session.get(f"{proxy.url}/cache/stats", timeout=10)
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(15) == 0
    assert "Traceback" not in proxy.log


def stop_twice(simulator: Simulator, proxy: Proxy) -> None:
    """Asks for an orderly stop while a request hangs, and once more."""
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, proxy.url)
        try:
            until(lambda: simulator.running)
            proxy.process.send_signal(signal.SIGINT)
            until(lambda: refuses(proxy.url))
            assert proxy.process.poll() is None
            proxy.process.send_signal(signal.SIGINT)
            assert proxy.process.wait(15) == 0
        finally:
            simulator.release()
        assert isinstance(answer.exception(), requests.RequestException)


def test_stop_twice(simulator: Simulator, proxy: Proxy) -> None:
    """Somebody in a hurry does not wait for requests that hang."""
    stop_twice(simulator, proxy)


def test_stop_twice_is_quiet(simulator: Simulator, proxy: Proxy) -> None:
    """The end in a hurry looks like no crash."""
    stop_twice(simulator, proxy)
    assert "Traceback" not in proxy.log


def test_stop_with_slow_client(start_proxy: StartProxy) -> None:
    """A client on a slow line gets its whole answer when the proxy is stopped."""
    (pair,) = corpus("generate-n1")
    body = pair["response"]["body"] + " " * 20_000_000
    with serving(Replayer()) as replayer:
        replayer.pair = {**pair, "response": {**pair["response"], "body": body}}
        proxy = start_proxy(replayer.url)
        parts = urlsplit(proxy.url)
        with socket.socket() as client:
            client.settimeout(20)
            client.connect((parts.hostname, parts.port))
            client.sendall(
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 12\r\n\r\n{"text":"a"}'
            )
            received = client.recv(4096)
            proxy.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(proxy.url))
            since = time.monotonic()
            until(lambda: proxy.process.poll() is not None or time.monotonic() > since + 2)
            assert proxy.process.poll() is None
            head, _, start = received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            size = len(start)
            while size < len(body.encode()) and (data := client.recv(1 << 20)):
                size += len(data)
            assert size == len(body.encode())
        assert proxy.process.wait(20) == 0


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_stop_with_followers(form: Any, simulator: Simulator, proxy: Proxy) -> None:
    """Those who wait for others' answers get them before the end."""
    body = {**request("shared"), **form}
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(5) as pool:
        answers = [
            pool.submit(requests.post, f"{proxy.url}/generate", json=body, timeout=30)
            for _ in range(5)
        ]
        try:
            until(lambda: proxy.stats()["followers"] == 4 and simulator.waiting)
            proxy.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(proxy.url))
        finally:
            simulator.release()
        kinds = sorted(answer.result().headers["X-Cache"] for answer in answers)
        assert kinds == ["COLLAPSED"] * 4 + ["MISS"]
        assert len({answer.result().content for answer in answers}) == 1
        assert proxy.process.wait(20) == 0
    assert "Traceback" not in proxy.log


def test_restart_without_upstream(start_proxy: StartProxy) -> None:
    """Stored answers are given while the server is down, and none for another's."""
    with running(Profile()) as upstream:
        first = start_proxy(upstream.url)
        text = post(first.url).json()["text"]
        assert first.stop() == 0
    for url, arguments, kind in (
        (upstream.url, [], "HIT"),
        (dead_url(), [], "BYPASS"),
        (dead_url(), ["--mode", "offline"], "HIT"),
    ):
        again = start_proxy(url, *arguments)
        answer = post(again.url)
        assert answer.headers["X-Cache"] == kind
        if kind == "HIT":
            assert answer.json()["text"] == text
        else:
            assert answer.status_code == 502
        assert again.stop() == 0


def test_killed_under_load(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A crash costs no answer that a client has had for 100 ms, and leaves the file whole."""
    acknowledged: dict[str, tuple[float, str]] = {}
    for turn in range(3):
        proxy = start_proxy(simulator.url)
        before = len(acknowledged)

        def ask(
            client: int, url: str = proxy.url, turn: int = turn, seen: dict[Any, Any] = acknowledged
        ) -> None:
            with requests.Session() as session:
                for n in range(100_000):
                    name = f"turn {turn} client {client} request {n}"
                    try:
                        answer = session.post(f"{url}/generate", json=request(name), timeout=10)
                        seen[name] = (time.monotonic(), answer.json()["text"])
                    except requests.RequestException:
                        return

        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(ask, client) for client in range(4)]
            began = time.monotonic()
            until(lambda b=before, t=began: len(acknowledged) > b + 60 and time.monotonic() > t + 1)
            killed = time.monotonic()
            proxy.process.kill()
            for one in done:
                one.result()
        proxy.process.wait(20)
        lost = [name for name, (at, _) in acknowledged.items() if at >= killed - 0.1]
        for name in lost:
            del acknowledged[name]
        assert len(acknowledged) > before
    proxy = start_proxy(simulator.url)
    text = post(proxy.url, "the last one").json()["text"]
    since = time.monotonic()
    until(lambda: time.monotonic() > since + 0.1)
    proxy.process.kill()
    acknowledged["the last one"] = (since, text)
    proxy.process.wait(20)
    proxy = start_proxy(simulator.url)
    asked = len(simulator.received)
    with requests.Session() as session:
        for name, (_, text) in acknowledged.items():
            answer = session.post(f"{proxy.url}/generate", json=request(name), timeout=10)
            assert answer.headers["X-Cache"] == "HIT", name
            assert answer.json()["text"] == text
    assert len(simulator.received) == asked
