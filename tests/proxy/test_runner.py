"""The running proxy as a user meets it: scripts, options, mitmweb, TLS, mitmdump."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from sglang_cached_addon.proxy.checks import has_token
from tests.certificates import self_signed
from tests.conftest import ADDON, Proxy, StartProxy, corpus, until
from tests.proxy.test_lifetime import free_port, line_of, post, refuses, serving
from tests.replayer import Replayer
from tests.simulator import Simulator

MITMDUMP = Path(sys.executable).parent / "mitmdump"

# Scripts and options of mitmproxy

SCRIPT = """
def response(flow):
    flow.response.headers["X-Script"] = "was here"
"""


def test_script(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A user's script is loaded, and sees what the cache answers."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "other.py").write_text(SCRIPT.replace("X-Script", "X-Other"))
    proxy = start_proxy(simulator.url, "-s", "script.py", "--script", str(tmp_path / "other.py"))
    for kind in ("MISS", "HIT"):
        answer = post(proxy.url)
        assert answer.headers["X-Cache"] == kind
        assert answer.headers["X-Script"] == answer.headers["X-Other"] == "was here"
    assert proxy.stop() == 0


def test_option_of_a_script(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A script's own options can be set."""
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
    """A script that cannot be loaded is named in the log."""
    (tmp_path / "script.py").write_text("def response(:\n")
    proxy = start_proxy(simulator.url, "-s", "script.py", ready=False)
    until(lambda: "SyntaxError" in proxy.log)
    assert "script.py" in proxy.log


def test_set(simulator: Simulator, start_proxy: StartProxy) -> None:
    """`--set` reaches mitmproxy."""
    proxy = start_proxy(
        simulator.url, "--set", "body_size_limit=1k", "--set", "keep_host_header=true"
    )
    assert requests.get(f"{proxy.url}/v1/models", timeout=10).status_code == 200
    (sent,) = (r for r in simulator.received if r.path == "/v1/models")
    assert sent.headers["host"] == urlsplit(proxy.url).netloc
    assert post(proxy.url, "word " * 1000).status_code == 413


def test_set_of_a_list(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """All values of an option that is a list count."""
    script = "import logging\nfrom mitmproxy import ctx\n"
    script += "def running():\n    logging.warning('hosts %s', ctx.options.ignore_hosts)\n"
    (tmp_path / "script.py").write_text(script)
    proxy = start_proxy(
        simulator.url, "-s", "script.py",
        "--set", "ignore_hosts=one", "--set", "listen_host=127.0.0.1", "--set", "ignore_hosts=two",
    )  # fmt: skip
    until(lambda: "hosts ['one', 'two']" in proxy.log)


# mitmweb


needs_token = pytest.mark.skipif(
    not has_token(), reason="this mitmweb asks nobody for a token, so `--web` is refused"
)


@needs_token
def test_web(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """`--web` caches, and shows flows at the URL that it prints, to nobody else."""
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
    """A second mitmweb runs beside another with the option that the error message names."""
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


@pytest.mark.parametrize("insecure", [False, True])
def test_self_signed(insecure: bool, start_proxy: StartProxy, tmp_path: Path) -> None:
    """No prompt goes to a server with an unknown certificate, unless `--insecure` is given."""
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
    """The cache works in somebody's own mitmdump."""
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
    """mitmdump without exactly one reverse mode says that nothing is cached."""
    given = [word for mode in modes for word in ("--mode", mode.format(port=free_port()))]
    with mitmdump(
        tmp_path, *given, "--set", f"sglang_cache_path={tmp_path / 'cache'}",
        "--set", f"listen_port={free_port()}", "--set", "listen_host=127.0.0.1",
    ) as process:  # fmt: skip
        log = tmp_path / "log"
        until(lambda: process.poll() is not None or "reverse:http://HOST" in log.read_text())
        assert "needs exactly one upstream: --mode reverse:http://HOST:PORT" in log.read_text()
        assert "Traceback" not in log.read_text()
