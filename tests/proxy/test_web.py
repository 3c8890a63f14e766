"""mitmweb's page where it asks for no token: on mitmproxy before 11.1.2 (Python 3.11's)."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.test import taddons

from sglang_cached_addon.proxy.web import WebPage, is_here
from tests.conftest import HAS_TOKEN, START_SECONDS, Mitmproxy, StartProxy, end, until
from tests.ports import free_port
from tests.simulator import Simulator
from tests.tables import each

WARNING = "has no token: all users of this machine can read requests"
ANYWHERE = ("0.0.0.0", "", "::", "192.0.2.1", "example.org", "localhost.example.org")


@each(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
     *((host, False) for host in ANYWHERE)],
)  # fmt: skip
def test_hosts(host: str, is_local: bool) -> None:
    """Only what no other machine reaches is taken for this one."""
    assert is_here(host) is is_local


def test_option(caplog: pytest.LogCaptureFixture) -> None:
    """Without a token, a page for others is refused, whoever asks for it; with one, it is not."""

    async def run() -> None:
        for has_token in (True, False):
            page = WebPage()
            with taddons.context(page, loadcore=False) as context:
                context.master.options.add_option("web_host", str, "127.0.0.1", "An address.")
                if has_token:
                    context.master.addons.add(type("WebAuth", (), {})())
                for host in ANYWHERE:
                    with nullcontext() if has_token else refused():
                        context.configure(page, web_host=host)
                context.configure(page, web_host="127.0.0.1")
                page.running()
                assert (WARNING in caplog.text) is not has_token

    asyncio.run(run())


def refused() -> Any:
    words = r"web_host at 127\.0\.0\.1, which `ssh -L`.*mitmproxy 11\.1\.2 or newer"
    return pytest.raises(exceptions.OptionsError, match=words)


def test_without_page(caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no page, nothing is said."""

    async def run() -> None:
        page = WebPage()
        with taddons.context(page, loadcore=False):
            page.configure({"web_host"})
            page.running()

    asyncio.run(run())
    assert WARNING not in caplog.text


def reachable(port: int) -> list[str]:
    """The addresses of this machine at which somebody listens on a port."""
    found = []
    for host in ("127.0.0.1", "127.0.0.2"):
        with socket.socket() as probe:
            probe.settimeout(30)
            if probe.connect_ex((host, port)) == 0:
                found.append(host)
    return found


def test_start(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """`start --web` listens on one address of the machine itself, and tells if it has no token."""
    port = free_port()
    sets = ["--set", f"web_port={port}", "--set", f"confdir={tmp_path}"]
    proxy = start_proxy(simulator.url, "--web", *sets)
    assert reachable(port) == ["127.0.0.1"]
    assert (WARNING in proxy.log) is not HAS_TOKEN
    assert proxy.stop() == 0


@pytest.mark.skipif(HAS_TOKEN, reason="this mitmweb asks for a token")
def test_start_for_others(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Without a token, `start --web` with another address is refused in one line."""
    sets = ["--set", "web_host=0.0.0.0", "--set", f"confdir={tmp_path}"]
    proxy = start_proxy(simulator.url, "--web", *sets, ready=False)
    assert proxy.process.wait(START_SECONDS) == 1
    (line,) = proxy.log.splitlines()
    assert line.startswith("sglang-cached: --set web_host: with mitmproxy 11.0.2, whoever reaches")


@pytest.mark.skipif(HAS_TOKEN, reason="this mitmweb asks for a token")
def test_mitmweb_for_others(simulator: Simulator, tmp_path: Path) -> None:
    """So it is with the addon in mitmweb: it ends, and says why."""
    options = ["web_host=0.0.0.0", f"web_port={free_port()}", "web_open_browser=false",
               "listen_port=0", "listen_host=127.0.0.1", f"confdir={tmp_path}",
               f"sglang_cache_path={tmp_path / 'cache'}"]  # fmt: skip
    sets = [word for option in options for word in ("--set", option)]
    proxy = Mitmproxy("mitmweb", ["--mode", f"reverse:{simulator.url}", *sets], tmp_path)
    try:
        assert until(lambda: proxy.process.poll() is not None, START_SECONDS)
        assert proxy.process.poll() == 1
        assert "leave web_host at 127.0.0.1" in proxy.log
    finally:
        end(proxy)
