"""Every end-to-end test runs twice: with the fast lane, and through mitmproxy's hooks alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_cached_addon.simulator import Profile, running
from tests.conftest import Proxy, StartProxy

LANES = {"lane": [], "hooks": ["--set", "sglang_express=false"]}


@pytest.fixture(scope="module", params=LANES)
def lane(request: pytest.FixtureRequest) -> list[str]:
    """Arguments of `start`."""
    return LANES[request.param]


@pytest.fixture
def start_proxy(start_proxy: StartProxy, lane: list[str]) -> StartProxy:
    return lambda url, *arguments, **kwargs: start_proxy(url, *arguments, *lane, **kwargs)


StartFront = StartProxy


@pytest.fixture(scope="module")
def start_front(tmp_path_factory: pytest.TempPathFactory, lane: list[str]) -> Iterator[StartFront]:
    """Starts a proxy that lives as long as the module."""
    started: list[Proxy] = []

    def start(url: str) -> Proxy:
        folder: Path = tmp_path_factory.mktemp("front")
        arguments = ["--port", "0", "--host", "127.0.0.1", "--cache-path", str(folder / "cache")]
        started.append(Proxy(["--sglang-url", url, *arguments, *lane], folder))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    codes = [proxy.stop() for proxy in started]
    assert codes == [0] * len(codes)
    for proxy in started:
        assert "Traceback" not in proxy.log, proxy.log


@pytest.fixture(scope="module")
def upstream_url() -> Iterator[str]:
    """The simulator, or a real server where SGLANG_URL names one."""
    if url := os.environ.get("SGLANG_URL"):
        yield url.rstrip("/")
    else:
        with running(Profile()) as simulator:
            yield simulator.url


@pytest.fixture(scope="module")
def front(upstream_url: str, start_front: StartFront) -> Proxy:
    """A proxy in front of that."""
    return start_front(upstream_url)
