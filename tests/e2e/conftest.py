"""End-to-end tests run twice: with the fast lane, and through mitmproxy's hooks alone. Those that
take `start_way` run in each of the ways in which people start the cache. Those marked `one_way` are
about what lies behind both, and take the lane alone; `EVERY_WAY=1` lets them run twice, too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Mitmproxy, Proxy, StartProxy
from tests.e2e.programs import litellm, node  # noqa: F401 (for all tests)
from tests.simulator import Profile, Simulator, running

EVERY_WAY = bool(os.environ.get("EVERY_WAY"))
LANES = {"lane": [], "hooks": ["--set", "sglang_express=false"]}


def command(url: str, folder: Path, *arguments: str) -> Proxy:
    """`sglang-cached start`."""
    place = ["--port", "0", "--host", "127.0.0.1", "--cache-path", str(folder / "cache")]
    return Proxy(["--sglang-url", url, *place, *arguments], folder)


def mitmproxy(program: str, url: str, folder: Path, *arguments: str) -> Proxy:
    """`mitmdump -s` or `mitmweb -s`."""
    options = {
        "confdir": folder,
        "listen_host": "127.0.0.1",
        "listen_port": 0,
        "sglang_cache_path": folder / "cache",
    }
    sets = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    return Mitmproxy(program, ["--mode", f"reverse:{url}", *sets, *arguments], folder)


WEB = ("--set", "web_port=0", "--set", "web_open_browser=false")

WAYS: dict[str, Callable[..., Proxy]] = {
    "lane": command,
    "hooks": lambda url, folder, *a: command(url, folder, *LANES["hooks"], *a),
    "web": lambda url, folder, *a: command(
        url, folder, "--web", *WEB, "--set", f"confdir={folder}", *a
    ),
    "mitmdump": partial(mitmproxy, "mitmdump"),
    "mitmweb": lambda url, folder, *a: mitmproxy("mitmweb", url, folder, *WEB, *a),
}
"""The ways in: what starts the cache in front of a URL, with what it writes in a folder."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lane" in metafunc.fixturenames:
        is_one = metafunc.definition.get_closest_marker("one_way") and not EVERY_WAY
        metafunc.parametrize("lane", ["lane"] if is_one else LANES, indirect=True, scope="module")


@pytest.fixture(scope="module")
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
    with starting(lambda url, folder: command(url, folder, *lane), tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module", params=WAYS)
def start_way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartFront]:
    """The same, in each of the ways in; takes options for `--set` as well."""
    with starting(WAYS[request.param], tmp_path_factory) as start:
        yield start


@contextmanager
def starting(way: StartProxy, folders: pytest.TempPathFactory) -> Iterator[StartFront]:
    """Ends all that it starts, and looks whether it went well."""
    started: list[Proxy] = []

    def start(url: str, **options: object) -> Proxy:
        sets = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        started.append(way(url, folders.mktemp("front"), *sets))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    codes = [proxy.stop() for proxy in started]
    assert codes == [0] * len(codes)
    for proxy in started:
        assert "Traceback" not in proxy.log, proxy.log


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    """A simulator for all tests of a module."""
    with running(Profile()) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def shared(upstream: Simulator, start_front: StartFront) -> Proxy:
    """A proxy in front of that."""
    return start_front(upstream.url)


def is_shared(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("shared") is not None


@pytest.fixture
def simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """An upstream of the test's own, or, where the tests of a module are `shared`, the one that
    they have in common, which has heard nothing."""
    if not is_shared(request):
        with running(Profile()) as alone:
            yield alone
        return
    upstream: Simulator = request.getfixturevalue("upstream")
    upstream.received.clear()
    yield upstream
    upstream.faults.clear()
    upstream.release()


@pytest.fixture
def proxy(request: pytest.FixtureRequest, lane: list[str], simulator: Simulator) -> Proxy:
    """A proxy in front of the simulator."""
    if is_shared(request):
        found: Proxy = request.getfixturevalue("shared")
        return found
    start: StartProxy = request.getfixturevalue("start_proxy")
    return start(simulator.url)


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
