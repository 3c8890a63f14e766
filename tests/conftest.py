"""What the tests share: a stand-in upstream, and the proxy as a user starts it."""

from __future__ import annotations

import contextlib
import filecmp
import functools
import gc
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from mitmproxy.version import VERSION
from packaging.version import Version

import sglang_cached_addon
from tests.browser import chromium, new_tab, pytest_pyfunc_call, tab  # noqa: F401 (for all tests)
from tests.simulator import Profile, Simulator, running
from tests.starter import Started, Starter

COMMAND = Path(sysconfig.get_path("scripts")) / "sglang-cached"
SOURCE = Path(sglang_cached_addon.__file__).parent
WHEEL = Path(sysconfig.get_path("purelib")) / "sglang_cached_addon"
"""What `make test` installs, and every test starts; not there after an editable installation."""

ADDON = (WHEEL if WHEEL.is_dir() else SOURCE) / "addon.py"
CORPUS = Path(__file__).parent / "corpus"
START_SECONDS = 90.0
"""On a machine that is busy with much else, it takes many times as long as on an idle one."""

SETTLE_SECONDS = 60.0

HAS_TOKEN = Version(VERSION) >= Version("11.1.2")
"""Whether this mitmweb wants a token; where it does not, only this machine can reach it."""

gc.disable()  # until the tests are found: a sixth of the time that finding them takes


@functools.cache
def starter() -> Starter:
    """The one that starts the proxies of this test process."""
    return Starter()


def pytest_collection_finish() -> None:
    """What is there by now stays: nobody need look through it again."""
    gc.enable()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    if starter.cache_info().currsize:
        starter().close()


class Proxy:
    """A `sglang-cached start` process."""

    def __init__(
        self, arguments: list[str], cwd: Path, *, executed: bool = False, **ways: Any
    ) -> None:
        """It is forked for, if not `executed`; `ways` are those of `Starter.start`, or of
        `subprocess.Popen`, and `env` is what its environment has besides."""
        self._begin([str(COMMAND), "start", *arguments], cwd, executed, ways)

    def _begin(self, command: list[str], cwd: Path, executed: bool, ways: dict[str, Any]) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_CACHED_")}
        environment["PYTHONUNBUFFERED"] = "1"
        environment |= ways.pop("env", {})
        self._stderr = cwd / "stderr"
        with open(self._stderr, "ab") as stderr:
            self.process: subprocess.Popen[bytes] | Started
            if executed:
                usual = {"stdout": subprocess.PIPE, "stderr": stderr, "env": environment}
                self.process = subprocess.Popen(command, cwd=cwd, **{**usual, **ways})
            else:
                ways = {"stderr": stderr.fileno(), **ways}
                self.process = starter().start(command, cwd, environment, **ways)
        self.banner = ""
        self.url = ""
        self.session = requests.Session()
        """A client that keeps its connections: a new one costs more than most calls do."""
        self.session.trust_env = False
        self.session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=50))

    def wait_until_ready(self) -> None:
        """Returns when the banner is complete; fails with what the process said."""
        assert self.process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            deadline = time.monotonic() + START_SECONDS
            while not re.search(r"^  cache .*\n", self.banner, re.M):
                ready = selector.select(deadline - time.monotonic())
                data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
                if not data:
                    pytest.fail(f"no start: {self.banner!r} {self.log!r}")
                self.banner += data.decode()
        match = re.search(r"listening +http://\S+:(\d+)", self.banner)
        assert match
        self.url = f"http://127.0.0.1:{match[1]}"

    @property
    def log(self) -> str:
        """What the process has written to stderr."""
        return self._stderr.read_text()

    def connect(self, seconds: float = 20.0) -> socket.socket:
        """A client's connection, which waits no longer than that for anything."""
        host, port = self.url.removeprefix("http://").split(":")
        client = socket.create_connection((host, int(port)), seconds)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes of memory that the process has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) << 10

    def peak(self) -> int:
        """Bytes of memory that the process has had at most."""
        return self.memory("VmHWM")

    def info(self) -> dict[str, Any]:
        """How it is set up, and what it knows of upstream."""
        answer = self.session.get(f"{self.url}/cache/info", timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def stats(self, *, settled: bool = True) -> dict[str, Any]:
        """What it tells of itself, once what it has answered is stored or will not be; or, if it is
        not to be `settled`, what it tells meanwhile."""
        deadline = time.monotonic() + SETTLE_SECONDS
        for pause in pauses():
            found: dict[str, Any] = self.session.get(f"{self.url}/cache/stats", timeout=30).json()
            if not (settled and found.get("unconfirmed")):
                break
            assert time.monotonic() < deadline, found
            time.sleep(pause)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits; the exit code."""
        self.session.close()  # mitmproxy logs a traceback for a client that is still there
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        if self.process.stdout:
            self.process.stdout.close()
        return code


def end(proxy: Proxy) -> None:
    """Ends a proxy at once; where its coverage is measured, it has a moment to write it down."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ and proxy.process.poll() is None:
        proxy.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            proxy.process.wait(1)
    proxy.stop(signal.SIGKILL)


class Mitmproxy(Proxy):
    """mitmdump or mitmweb, with the addon: their banner is what they log."""

    def __init__(
        self, program: str, arguments: list[str], cwd: Path, *, executed: bool = False
    ) -> None:
        command = [str(COMMAND.parent / program), "-s", str(ADDON), *arguments]
        with open(cwd / "stderr", "ab") as log:
            self._begin(command, cwd, executed, {"stdout": log.fileno()})

    @property
    def log(self) -> str:
        """As `Proxy.log`, but for what these programs say of clients that are still there when they
        end: one that has just left may be, where they are slow to see it."""
        return _STILL_THERE.sub("", super().log)

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            self.banner = self.log
            assert self.process.poll() is None, self.log
            return "listening at " in self.banner and "sglang-cached: http" in self.banner

        until(is_ready, START_SECONDS)
        match = re.search(r"proxy to \S+ listening at \S+:(\d+)\.", self.banner)
        assert match, self.log
        self.url = f"http://127.0.0.1:{match[1]}"


_STILL_THERE = re.compile(
    r"Exception in callback StreamReaderProtocol\.connection_made.*?CancelledError\n", re.DOTALL
)

StartProxy = Callable[..., Proxy]


def pytest_sessionstart() -> None:
    """What is started is what lies here."""
    if WHEEL.is_dir():
        # What Python compiles beside the sources comes and goes.
        files = (path for path in SOURCE.rglob("*.*") if path.parent.name != "__pycache__")
        names = [path.relative_to(SOURCE) for path in files if path.is_file()]
        _, others, absent = filecmp.cmpfiles(SOURCE, WHEEL, names, shallow=False)
        if others or absent:
            pytest.exit("the sources have changed: `make test` installs them", 2)


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """An upstream that answers at once."""
    with running(Profile()) as upstream:
        yield upstream


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Starts proxies: `start_proxy(url, *arguments, cache=..., ready=True)`; all end with it."""
    with ExitStack() as stack:

        def start(
            url: str, *arguments: str, cache: Path | None = None, ready: bool = True, **ways: Any
        ) -> Proxy:
            folder = cache or tmp_path / "cache"
            proxy = Proxy(
                ["--sglang-url", url, "--port", "0", "--host", "127.0.0.1",
                 "--cache-path", str(folder), *arguments],
                tmp_path,
                **ways,
            )  # fmt: skip
            stack.callback(end, proxy)
            if ready:
                proxy.wait_until_ready()
            return proxy

        yield start


@pytest.fixture
def proxy(simulator: Simulator, start_proxy: StartProxy) -> Proxy:
    """The proxy in front of the simulator."""
    return start_proxy(simulator.url)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Waits for what another thread or process is about to do; not for longer than that."""
    deadline = time.monotonic() + seconds
    for pause in pauses():
        if found := condition():
            break
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)
    return found


def pauses() -> Iterator[float]:
    """Seconds between looks: at first short ones, and never so short that looking is all that the
    processor does."""
    pause = 0.002
    while True:
        yield pause
        pause = min(pause * 1.3, 0.05)


def read_all(client: socket.socket) -> bytes:
    """What a client gets until its connection is closed."""
    return b"".join(iter(lambda: client.recv(1 << 20), b""))


def cache_status(headers: Mapping[str, str]) -> str:
    """`Cache-Status`, without the key of the call."""
    return re.sub(r'; key="[0-9a-f]{32}"', "", headers.get("cache-status", ""))


def corpus(prefix: str = "") -> list[dict[str, Any]]:
    """Recorded pairs of SGLang 0.5.23 whose name begins with `prefix`."""
    return [json.loads(path.read_bytes()) for path in sorted(CORPUS.glob(f"{prefix}*.json"))]
