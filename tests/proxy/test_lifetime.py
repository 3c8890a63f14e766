"""The beginning and the end of a proxy: banner, stop, drain, restart."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import START_SECONDS, Proxy, StartProxy, corpus, until
from tests.hearing import saying
from tests.ports import dead_url, free_port
from tests.replayer import replaying
from tests.simulator import Fault, Simulator
from tests.tables import each


def request(text: str) -> dict[str, Any]:
    return {"text": text, "sampling_params": {"temperature": 0.9, "max_new_tokens": 4}}


def post(url: str, text: str = "one two", **kwargs: Any) -> requests.Response:
    return requests.post(f"{url}/generate", json=request(text), timeout=30, **kwargs)


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


# Start


def test_banner(simulator: Simulator, proxy: Proxy) -> None:
    """People are told where it listens, what is behind it and where answers are."""
    assert re.search(rf"^  listening  {proxy.url}$", proxy.banner, re.M)
    assert re.search(rf"^  page       {proxy.url}/cache/$", proxy.banner, re.M)
    assert re.search(rf"^  upstream   {simulator.url}$", proxy.banner, re.M)
    assert re.search(
        r"^  cache      \S+/cache/cache\.jsonl \(0 entries, 0 samples\)$", proxy.banner, re.M
    )
    assert re.fullmatch(r"simulated \([0-9a-f]{16}\)", line_of(proxy, "model"))
    assert proxy.log == ""


def test_upstream_absent(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Without its upstream the proxy starts, warns once, and tells clients why they get nothing;
    what another server has answered is not given."""
    first, url = start_proxy(simulator.url), dead_url()
    assert post(first.url).ok
    assert first.stop() == 0
    before = len(first.log)
    proxy = start_proxy(url)
    assert "(1 entries, 1 samples)" in proxy.banner
    until(lambda: "warning" in proxy.log)
    (line,) = proxy.log[before:].splitlines()
    assert url in line
    answer = post(proxy.url)
    said = (answer.status_code, answer.headers["X-Cache"], answer.headers["Content-Type"])
    assert said == (502, "BYPASS", "application/json")
    assert url in answer.json()["error"]["message"]
    assert requests.get(f"{proxy.url}/health", timeout=30).json()["upstream"]["state"] == "down"
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log


def test_upstream_is_something_else(start_proxy: StartProxy) -> None:
    """A wrong port, of SSH say, is a warning."""
    with saying(b"SSH-2.0-OpenSSH_9.6\r\n") as upstream:
        proxy = start_proxy(upstream.url)
        until(lambda: "warning" in proxy.log)
        assert "Traceback" not in proxy.log
        assert proxy.stop() == 0


def test_nobody_is_let_in_too_early(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Nobody is let in before the store is open and upstream was asked who it is; if that says
    nothing, the proxy starts nevertheless."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}"
        proxy = start_proxy(upstream, "--port", str(port), ready=False)
        listener.settimeout(START_SECONDS)
        asked, _ = listener.accept()
        with asked:
            assert (tmp_path / "cache" / "cache.lock").exists()
            assert refuses(f"http://127.0.0.1:{port}")
            proxy.wait_until_ready()
        assert "  model" not in proxy.banner
        assert requests.get(f"{proxy.url}/health", timeout=30).status_code == 200


# Stop and restart


@each("number", [signal.SIGINT, signal.SIGTERM])
def test_stop(
    number: signal.Signals, simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """A stop lets nobody in, answers what is under way, keeps it, waits for no idle client, and
    looks like no crash."""
    proxy = start_proxy(simulator.url, cache=tmp_path / number.name)
    texts = [f"text {n}" for n in range(12)]
    simulator.faults.extend([Fault.HOLD] * len(texts))
    with requests.Session() as idle, ThreadPoolExecutor(len(texts)) as pool:
        idle.get(f"{proxy.url}/cache/stats", timeout=30)
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
        assert proxy.process.wait(60) == 0
    assert "Traceback" not in proxy.log
    asked = len(simulator.received)
    again = start_proxy(simulator.url, cache=tmp_path / number.name)
    assert "(12 entries, 12 samples)" in again.banner
    for text, answer in zip(texts, answers, strict=True):
        hit = post(again.url, text)
        assert hit.headers["X-Cache"] == "HIT"
        assert hit.json()["text"] == answer.result().json()["text"]
    assert {r.path for r in simulator.received[asked:]} <= {"/model_info", "/server_info"}


@each("express", ["true", "false"])
def test_stop_while_a_call_arrives(
    express: str, simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """What is on its way when the end begins is answered, too."""
    arguments = ("--set", f"sglang_express={express}")
    proxy = start_proxy(simulator.url, *arguments, cache=tmp_path / express)
    assert post(proxy.url, "a").status_code == 200
    body = b'{"text": "%b", "sampling_params": {"temperature": 0.9, "max_new_tokens": 4}}'
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    known, new = (
        b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body % text), body % text)
        for text in (b"a", b"b")
    )
    with proxy.connect() as client:
        client.sendall(known + new[:-10])
        hear(client, b"X-Cache: HIT")
        proxy.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(proxy.url))
        client.sendall(new[-10:])
        hear(client, b"X-Cache: MISS")
    assert proxy.process.wait(60) == 0
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
        return requests.get(f"{url}/health", timeout=30).status_code == 200
    except requests.ConnectionError:
        return False


@each(
    ("arguments", "signals"),
    [(["--drain", "0.5"], [signal.SIGTERM]), ([], [signal.SIGINT, signal.SIGINT])],
)
def test_what_hangs_is_ended(
    arguments: list[str],
    signals: list[signal.Signals],
    simulator: Simulator,
    start_proxy: StartProxy,
) -> None:
    """A call that never ends keeps the proxy no longer than the drain, nor from ending where
    somebody asks twice, and that looks like no crash."""
    proxy = start_proxy(simulator.url, *arguments)
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, proxy.url)
        try:
            until(lambda: simulator.running)
            for number in signals:
                assert proxy.process.poll() is None
                proxy.process.send_signal(number)
                until(lambda: refuses(proxy.url))
            assert proxy.process.wait(60) == 0
        finally:
            simulator.release()
        assert isinstance(answer.exception(), requests.RequestException)
    until(lambda: not simulator.running)
    assert "Traceback" not in proxy.log


def test_drain_accept(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A balancer that has not heard of the end gets answers for a while, and the end comes."""
    proxy = start_proxy(simulator.url, "--drain-accept", "5")
    proxy.process.send_signal(signal.SIGTERM)
    for _ in range(3):
        assert asks_once(proxy.url)
        assert post(proxy.url).status_code == 200
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, proxy.url, "another")
        try:
            until(lambda: simulator.waiting)
            until(lambda: refuses(proxy.url))
            assert simulator.running == 1
            assert proxy.process.poll() is None
        finally:
            simulator.release()
        assert answer.result().headers["X-Cache"] == "MISS"
        assert proxy.process.wait(60) == 0
    assert "Traceback" not in proxy.log


def test_stop_twice_while_it_accepts(start_proxy: StartProxy) -> None:
    """Somebody in a hurry does not wait for balancers."""
    proxy = start_proxy(dead_url(), "--drain-accept", "50")
    proxy.process.send_signal(signal.SIGTERM)
    assert asks_once(proxy.url)
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(60) == 0


def test_stop_with_slow_client(start_proxy: StartProxy) -> None:
    """A client on a slow line gets its whole answer when the proxy is stopped."""
    (pair,) = corpus("generate-n1")
    body = pair["response"]["body"] + " " * 20_000_000
    with replaying() as replayer:
        replayer.pair = {**pair, "response": {**pair["response"], "body": body}}
        proxy = start_proxy(replayer.url)
        with proxy.connect() as client:
            client.sendall(
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 12\r\n\r\n{"text":"a"}'
            )
            received = client.recv(4096)
            proxy.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(proxy.url))
            with pytest.raises(subprocess.TimeoutExpired):
                proxy.process.wait(0.5)
            head, _, start = received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            size = len(start)
            while size < len(body.encode()) and (data := client.recv(1 << 20)):
                size += len(data)
            assert size == len(body.encode())
        assert proxy.process.wait(60) == 0


@each("is_stream", [False, True])
def test_stop_with_followers(
    is_stream: bool, simulator: Simulator, start_proxy: StartProxy, tmp_path: Path
) -> None:
    """Those who wait for others' answers get them before the end."""
    proxy = start_proxy(simulator.url, cache=tmp_path / str(is_stream))
    body = {**request("shared"), "stream": is_stream}
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(5) as pool:
        url = f"{proxy.url}/generate"
        answers = [pool.submit(requests.post, url, json=body, timeout=30) for _ in range(5)]
        try:
            until(lambda: proxy.stats()["followers"] == 4 and simulator.waiting)
            proxy.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(proxy.url))
        finally:
            simulator.release()
        kinds = sorted(answer.result().headers["X-Cache"] for answer in answers)
        assert kinds == ["COLLAPSED"] * 4 + ["MISS"]
        assert len({answer.result().content for answer in answers}) == 1
        assert proxy.process.wait(60) == 0
    assert "Traceback" not in proxy.log
