"""The running proxy as a user meets it: scripts, options, mitmweb, TLS, mitmdump."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

import requests

from tests.certificates import self_signed
from tests.conftest import HAS_TOKEN, START_SECONDS, Mitmproxy, StartProxy, corpus, end, until
from tests.ports import free_port
from tests.proxy.test_lifetime import line_of, post
from tests.replayer import replaying
from tests.simulator import Simulator
from tests.tables import each

SCRIPT = """
import logging
from mitmproxy import ctx
def load(loader):
    loader.add_option('my_word', str, 'none', 'A word.')
def running():
    logging.warning('hosts %s', ctx.options.ignore_hosts)
def response(flow):
    flow.response.headers['X-Word'] = ctx.options.my_word
"""
OTHER = """
def response(flow):
    flow.response.headers['X-Other'] = 'was here'
"""


def test_scripts_and_options(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Scripts are loaded, and see what the cache answers; `--set` reaches them and mitmproxy, and
    all values of an option that is a list count."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "other.py").write_text(OTHER)
    sets = ["my_word=hello", "ignore_hosts=one", "keep_host_header=true", "ignore_hosts=two",
            "body_size_limit=1k"]  # fmt: skip
    proxy = start_proxy(
        simulator.url, "-s", "script.py", "--script", str(tmp_path / "other.py"),
        *(word for value in sets for word in ("--set", value)),
    )  # fmt: skip
    for kind in ("MISS", "HIT"):
        answer = post(proxy.url)
        fields = [answer.headers[name] for name in ("X-Cache", "X-Word", "X-Other")]
        assert fields == [kind, "hello", "was here"]
    assert requests.get(f"{proxy.url}/v1/models", timeout=30).status_code == 200
    (sent,) = (r for r in simulator.received if r.path == "/v1/models")
    assert sent.headers["host"] == urlsplit(proxy.url).netloc
    assert post(proxy.url, "word " * 1000).status_code == 413
    until(lambda: "hosts ['one', 'two']" in proxy.log)
    assert proxy.stop() == 0


def test_broken_script(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A script that cannot be loaded is named in the log."""
    (tmp_path / "script.py").write_text("def response(:\n")
    proxy = start_proxy(simulator.url, "-s", "script.py", ready=False)
    until(lambda: "SyntaxError" in proxy.log, START_SECONDS)
    assert "script.py" in proxy.log


def test_web(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """`--web` caches, and shows flows at the URL that it prints, to nobody else; `web_port` is what
    lets it run beside another mitmweb."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8081))
            taken.listen()
        except OSError:
            pass  # somebody else has mitmweb's own port: as good
        proxy = start_proxy(
            simulator.url, "--web", "--set", f"web_port={free_port()}",
            "--set", f"confdir={tmp_path}",
        )  # fmt: skip
    url = line_of(proxy, "web")
    for kind in ("MISS", "HIT"):
        assert post(proxy.url).headers["X-Cache"] == kind
    with requests.Session() as session:
        page = session.get(url, timeout=30)
        assert page.status_code == 200
        assert "mitmproxy" in page.text
        bare = url.partition("?")[0]
        flows = session.get(f"{bare}flows", timeout=30).json()
    comments = [flow["comment"] for flow in flows if flow["request"]["path"] == "/generate"]
    assert [comment.split()[0] for comment in comments] == ["miss", "fetch", "hit"]
    if HAS_TOKEN:  # another user of the machine can find the port, but not the token
        assert requests.get(f"{bare}flows", timeout=30).status_code == 403
    assert requests.put(f"{bare}options", json={}, timeout=30).status_code == 403
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log


@each("is_insecure", [True, False])
def test_self_signed(is_insecure: bool, start_proxy: StartProxy, tmp_path: Path) -> None:
    """No prompt goes to a server with an unknown certificate, unless `--insecure` is given."""
    with replaying(self_signed(tmp_path)) as replayer:
        (replayer.pair,) = corpus("generate-n1")
        url = replayer.url.replace("http:", "https:")
        arguments = ["--set", f"confdir={tmp_path}", *(["--insecure"] if is_insecure else [])]
        proxy = start_proxy(url, *arguments, cache=tmp_path / str(is_insecure))
        asked = [post(proxy.url) for _ in range(2)]
        if is_insecure:
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


def test_mitmdump_without_an_upstream(tmp_path: Path) -> None:
    """mitmdump without exactly one reverse mode says that nothing is cached."""
    options = {"confdir": tmp_path, "sglang_cache_path": tmp_path / "cache",
               "listen_port": 0, "listen_host": "127.0.0.1"}  # fmt: skip
    sets = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    proxy = Mitmproxy("mitmdump", ["--mode", "regular", *sets], tmp_path, executed=True)
    words = "needs exactly one upstream: --mode reverse:http://HOST:PORT"
    until(lambda: proxy.process.poll() is not None or words in proxy.log, START_SECONDS)
    end(proxy)
    assert words in proxy.log
    assert "Traceback" not in proxy.log
