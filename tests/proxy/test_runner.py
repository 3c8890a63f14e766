"""The running proxy as a user meets it: start, stop, restart, kill, scripts, mitmweb, mitmdump."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from sglang_cached_addon.proxy.runner import StartError, has_token, normal_url
from tests.certificates import self_signed
from tests.conftest import ADDON, Proxy, StartProxy, corpus
from tests.replayer import Replayer
from tests.simulator import Fault, Profile, Simulator, running
from tests.upstream.scripted import dead_url

MITMDUMP = Path(sys.executable).parent / "mitmdump"


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)
    return found


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


# The upstream's URL


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://localhost:30000", "http://localhost:30000"),
        ("http://localhost:30000/", "http://localhost:30000"),
        ("localhost:30000", "http://localhost:30000"),
        ("localhost", "http://localhost:80"),
        ("10.0.0.1:8000", "http://10.0.0.1:8000"),
        ("http://sglang_1", "http://sglang_1:80"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:8443", "https://example.org:8443"),
        ("HTTPS://Example.org", "https://example.org:443"),
        ("http://localhost:", "http://localhost:80"),
        ("http://localhost:65535", "http://localhost:65535"),
        ("http://[::1]:30000", "http://[::1]:30000"),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]:443"),
    ],
)
def test_normal_url(url: str, normal: str) -> None:
    """A URL that people type would be refused, or lead elsewhere."""
    assert normal_url(url) == normal


def unchecked(*values: object) -> Any:
    return pytest.param(*values)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be like"),
        ("http://", "must be like"),
        ("http://:30000", "must be like"),
        ("ftp://localhost:30000", "must be like"),
        ("tcp://localhost:30000", "must be like"),
        ("http://localhost:65536", "range"),
        ("http://localhost:-1", "--sglang-url"),
        ("http://localhost:http", "--sglang-url"),
        ("http://[::1", "--sglang-url"),
        ("http://me:secret@localhost:30000", "credentials"),
        ("http://me@localhost:30000", "credentials"),
        ("http://localhost:30000/v1", "path"),
        ("http://localhost:30000?key=x", "path"),
        ("http://localhost:30000#x", "path"),
        unchecked("http://localhost:0", "--sglang-url"),
        unchecked("http://local host:30000", "--sglang-url"),
        unchecked("http://a..b:30000", "--sglang-url"),
        unchecked("http://*:30000", "--sglang-url"),
    ],
)
def test_bad_url(url: str, words: str) -> None:
    """A mistyped URL would start a proxy in front of nothing."""
    with pytest.raises(StartError, match=words) as caught:
        normal_url(url)
    assert "--sglang-url" in str(caught.value)
    assert "secret" not in str(caught.value)


# Start


def test_banner(simulator: Simulator, proxy: Proxy) -> None:
    """People would not learn where it listens, what is behind it and where answers are."""
    assert re.search(rf"^  listening  {proxy.url}$", proxy.banner, re.M)
    assert re.search(rf"^  upstream   {simulator.url}$", proxy.banner, re.M)
    assert re.search(
        r"^  cache      \S+/cache/cache\.jsonl \(0 entries, 0 samples\)$", proxy.banner, re.M
    )
    assert re.fullmatch(r"simulated \([0-9a-f]{16}\)", line_of(proxy, "model"))
    assert proxy.log == ""


def test_upstream_absent(start_proxy: StartProxy) -> None:
    """Without its upstream the proxy would not start, or leave clients without a reason."""
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
    """A wrong port, of SSH say, would give a traceback and no banner."""
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
    """The proxy would not start before its upstream has spoken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = start_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert "  model" not in proxy.banner
        assert requests.get(f"{proxy.url}/health", timeout=10).status_code == 200


def test_nobody_is_let_in_too_early(start_proxy: StartProxy, tmp_path: Path) -> None:
    """Who came before the store is open, and upstream was asked who it is, would be answered as if
    nothing were stored."""
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
    """A stop would cut answers in progress, take new work, forget answers, or look like a crash."""
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
    """What is on its way when the end begins would be dropped, as it is nobody's yet."""
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
    """A call that never ends would keep the proxy from ending."""
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
    """A balancer that has not heard of the end would get errors; or the end never come."""
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
    """Somebody in a hurry would have to wait for balancers."""
    proxy = start_proxy(dead_url(), "--drain-accept", "50")
    proxy.process.send_signal(signal.SIGTERM)
    assert asks_once(proxy.url)
    proxy.process.send_signal(signal.SIGTERM)
    assert proxy.process.wait(15) == 0


def test_stop_with_idle_clients(proxy: Proxy) -> None:
    """A client that keeps its connection would keep the proxy from ending."""
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
    """Somebody in a hurry would have to wait for requests that hang."""
    stop_twice(simulator, proxy)


def test_stop_twice_is_quiet(simulator: Simulator, proxy: Proxy) -> None:
    """Somebody in a hurry would take the end for a crash."""
    stop_twice(simulator, proxy)
    assert "Traceback" not in proxy.log


def test_stop_with_slow_client(start_proxy: StartProxy) -> None:
    """A client on a slow line would get half an answer when the proxy is stopped."""
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
    """Those who wait for others' answers would get none."""
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
    """Stored answers could not be had while the server is down; or be given for another's."""
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
    """A crash would cost answers that clients had long got, or spoil the file."""
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


# Scripts and options of mitmproxy

SCRIPT = """
def response(flow):
    flow.response.headers["X-Script"] = "was here"
"""


def test_script(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A user's script would not be loaded, or not see what the cache answers."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "other.py").write_text(SCRIPT.replace("X-Script", "X-Other"))
    proxy = start_proxy(simulator.url, "-s", "script.py", "--script", str(tmp_path / "other.py"))
    for kind in ("MISS", "HIT"):
        answer = post(proxy.url)
        assert answer.headers["X-Cache"] == kind
        assert answer.headers["X-Script"] == answer.headers["X-Other"] == "was here"
    assert proxy.stop() == 0


def test_option_of_a_script(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A script's own options could not be set."""
    (tmp_path / "script.py").write_text(
        "from mitmproxy import ctx\n"
        "def load(loader):\n"
        "    loader.add_option('my_word', str, 'none', 'A word.')\n"
        "def response(flow):\n"
        "    flow.response.headers['X-Word'] = ctx.options.my_word\n"
    )
    proxy = start_proxy(simulator.url, "-s", "script.py", "--set", "my_word=hello")
    assert post(proxy.url).headers["X-Word"] == "hello"


def test_broken_script(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A script that cannot be loaded would be left out without a word."""
    (tmp_path / "script.py").write_text("def response(:\n")
    proxy = start_proxy(simulator.url, "-s", "script.py", ready=False)
    until(lambda: "SyntaxError" in proxy.log)
    assert "script.py" in proxy.log


def test_set(simulator: Simulator, start_proxy: StartProxy) -> None:
    """`--set` would not reach mitmproxy."""
    proxy = start_proxy(
        simulator.url, "--set", "body_size_limit=1k", "--set", "keep_host_header=true"
    )
    assert requests.get(f"{proxy.url}/v1/models", timeout=10).status_code == 200
    (sent,) = (r for r in simulator.received if r.path == "/v1/models")
    assert sent.headers["host"] == urlsplit(proxy.url).netloc
    assert post(proxy.url, "word " * 1000).status_code == 413


def test_set_of_a_list(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Of an option that is a list, only the last value would count."""
    script = "import logging\nfrom mitmproxy import ctx\n"
    script += "def running():\n    logging.warning('hosts %s', ctx.options.ignore_hosts)\n"
    (tmp_path / "script.py").write_text(script)
    proxy = start_proxy(
        simulator.url, "-s", "script.py",
        "--set", "ignore_hosts=one", "--set", "listen_host=127.0.0.1", "--set", "ignore_hosts=two",
    )  # fmt: skip
    until(lambda: "hosts ['one', 'two']" in proxy.log)


# mitmweb


def line_of(proxy: Proxy, word: str) -> str:
    """The banner's line that begins with a word."""
    assert proxy.process.stdout
    while not (match := re.search(rf"^  {word} +(.+)\n", proxy.banner, re.M)):
        data = os.read(proxy.process.stdout.fileno(), 65536)
        assert data, proxy.log
        proxy.banner += data.decode()
    return match[1]


needs_token = pytest.mark.skipif(
    not has_token(), reason="this mitmweb asks nobody for a token, so `--web` is refused"
)


@needs_token
def test_web(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """`--web` would not show flows at the URL that it prints, or not cache."""
    proxy = start_proxy(
        simulator.url, "--web", "--set", f"web_port={free_port()}", "--set", f"confdir={tmp_path}"
    )
    url = line_of(proxy, "web")
    for kind in ("MISS", "HIT"):
        assert post(proxy.url).headers["X-Cache"] == kind
    with requests.Session() as session:
        page = session.get(url, timeout=10)
        assert page.status_code == 200
        assert "mitmproxy" in page.text
        bare = url.partition("?")[0]
        flows = session.get(f"{bare}flows", timeout=10).json()
    assert ["hit" in flow["comment"] for flow in flows if flow["request"]["path"] == "/generate"] \
        == [False, True]  # fmt: skip
    # Another user of the machine can find the port, but not the token.
    assert requests.get(f"{bare}flows", timeout=10).status_code == 403
    assert requests.put(f"{bare}options", json={}, timeout=10).status_code == 403
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log


@needs_token
def test_web_beside_another(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """The way out that the error message names would not work."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8081))
            taken.listen()
        except OSError:
            pass  # somebody else has mitmweb's own port: as good
        proxy = start_proxy(
            simulator.url, "--web", "--set", f"web_port={free_port()}",
            "--set", f"confdir={tmp_path}", ready=False,
        )  # fmt: skip
        until(lambda: "listening" in proxy.banner or read_more(proxy) or proxy.log)
        assert "cannot listen" not in proxy.log
        assert proxy.stop() == 0


def read_more(proxy: Proxy) -> None:
    assert proxy.process.stdout
    proxy.banner += os.read(proxy.process.stdout.fileno(), 65536).decode()


# TLS


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


@pytest.mark.parametrize("insecure", [False, True])
def test_self_signed(insecure: bool, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Prompts would go to a stranger, or `--insecure` not help."""
    replayer = Replayer()
    replayer.socket = self_signed(tmp_path).wrap_socket(replayer.socket, server_side=True)
    with serving(replayer):
        (replayer.pair,) = corpus("generate-n1")
        url = replayer.url.replace("http:", "https:")
        arguments = ["--set", f"confdir={tmp_path}", *(["--insecure"] if insecure else [])]
        proxy = start_proxy(url, *arguments)
        asked = [post(proxy.url) for _ in range(2)]
        if insecure:
            assert [a.headers["X-Cache"] for a in asked] == ["MISS", "HIT"]
            assert "warning" not in proxy.log
        else:
            assert [a.status_code for a in asked] == [502, 502]
            assert url in asked[0].json()["error"]["message"]
            assert "certificate" in asked[0].json()["error"]["message"]
            assert all(b"text" not in body for body in replayer.received)
            until(lambda: "warning" in proxy.log)
        assert proxy.stop() == 0
    assert "Traceback" not in proxy.log


# mitmdump


@contextmanager
def mitmdump(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """mitmdump with the addon; what it says is in `log`."""
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            [MITMDUMP, "-s", ADDON, "--set", f"confdir={folder}", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def test_mitmdump(simulator: Simulator, tmp_path: Path) -> None:
    """Who has a mitmproxy already could not use the cache in it."""
    port, cache = free_port(), tmp_path / "cache"
    url = f"http://127.0.0.1:{port}"
    with mitmdump(
        tmp_path, "--mode", f"reverse:{simulator.url}", "--set", f"sglang_cache_path={cache}",
        "--set", f"listen_port={port}", "--set", "listen_host=127.0.0.1",
    ) as process:  # fmt: skip
        until(lambda: process.poll() is not None or not refuses(url))
        for kind in ("MISS", "HIT"):
            assert post(url).headers["X-Cache"] == kind
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert str(cache / "cache.jsonl") in log
    assert log.index("sglang-cached: http") < log.index("listening at")
    assert simulator.url in log
    assert (cache / "cache.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize(
    "modes",
    [
        ["regular"],
        ["upstream:http://127.0.0.1:9"],
        ["reverse:http://127.0.0.1:9", "reverse:http://127.0.0.1:10@{port}"],
    ],
    ids=["regular", "upstream", "two"],
)
def test_mitmdump_without_an_upstream(modes: list[str], tmp_path: Path) -> None:
    """mitmdump without a reverse mode would run, and cache nothing, without a word."""
    given = [word for mode in modes for word in ("--mode", mode.format(port=free_port()))]
    with mitmdump(
        tmp_path, *given, "--set", f"sglang_cache_path={tmp_path / 'cache'}",
        "--set", f"listen_port={free_port()}", "--set", "listen_host=127.0.0.1",
    ) as process:  # fmt: skip
        log = tmp_path / "log"
        until(lambda: process.poll() is not None or "reverse:http://HOST" in log.read_text())
        assert "needs exactly one upstream: --mode reverse:http://HOST:PORT" in log.read_text()
        assert "Traceback" not in log.read_text()
