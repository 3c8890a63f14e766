"""Output that nobody reads, or that has nowhere to go."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from sglang_cached_addon.proxy.output import MAX_KEPT, Output
from tests.conftest import START_SECONDS, Proxy, StartProxy, until
from tests.e2e.calls import BODIES
from tests.ports import free_port
from tests.proxy.test_lifetime import refuses
from tests.simulator import Simulator
from tests.tables import each

LINE = b"x" * 63 + b"\n"
PIPE_SIZE = 4096


def small_pipe() -> tuple[int, int]:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return read, write


def small_sockets() -> tuple[int, int]:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_SIZE)
    return other.detach(), one.detach()


def terminal() -> tuple[int, int]:
    keeper, user = pty.openpty()
    return keeper, user


@contextmanager
def ends(kind: Callable[[], tuple[int, int]]) -> Iterator[tuple[int, Output]]:
    """Where it can be read, and what writes there."""
    read, written = kind()
    yield read, Output(written)
    for end in (read, written):
        with suppress(OSError):
            os.close(end)


each_kind = each("kind", [small_pipe, small_sockets, terminal])


def write(out: Output, count: int) -> None:
    for _ in range(count):
        assert out.write(LINE) == len(LINE)


def read_lines(end: int, count: int) -> list[bytes]:
    """So many lines, without what a terminal does to them."""
    data = b""
    while data.count(b"\n") < count or not data.endswith(b"\n"):
        data += os.read(end, 65536).replace(b"\r", b"")
    return data.splitlines(keepends=True)


def writers() -> list[str]:
    """The threads that write what is kept."""
    return [thread.name for thread in threading.enumerate() if thread.name == "output"]


@each_kind
def test_nobody_reads(kind: Any) -> None:
    """Who writes never waits; what is kept is bounded, and written when it can be."""
    count = 2 * MAX_KEPT // len(LINE)
    with ends(kind) as (end, out):
        write(out, count)
        lines = read_lines(end, count // 2)
        while not (notice := lines[-1]).startswith(b"sglang-cached: "):
            lines += read_lines(end, 1)
        written = len(lines) - 1
        assert written >= count // 2 - 1
        assert lines[:-1] == [LINE] * written
        assert notice == b"sglang-cached: %d lines are missing here\n" % (count - written)
        until(lambda: not writers())
        write(out, 1)
        assert read_lines(end, 1) == [LINE]


@each_kind
def test_who_reads_leaves(kind: Any) -> None:
    """Who writes gets no error of whoever reads, and no thread waits for ever or runs hot."""
    for kept in (1, 4000):
        with ends(kind) as (end, out):
            write(out, kept)
            assert bool(writers()) == (kept > 1)
            os.close(end)
            until(lambda: not writers())
            write(out, 10)


def test_full_disk(tmp_path: Path) -> None:
    """Lines that were lost are said to be."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(tmp_path / "log", "wb") as file, closing(Output(file.fileno())) as out:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(LINE), hard))
            write(out, 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        write(out, 2)
    said = b"sglang-cached: 3 lines are missing here\n"
    assert (tmp_path / "log").read_bytes() == LINE * 2 + said + LINE * 2


# The proxy


def asks(proxy: Proxy, count: int) -> None:
    """Has it log so many lines."""
    with requests.Session() as session:
        for _ in range(count):
            answer = session.post(f"{proxy.url}/generate", json=BODIES["/generate"], timeout=30)
            assert answer.status_code == 200


def start_unseen(url: str, start_proxy: StartProxy, **ways: Any) -> Proxy:
    """One whose banner cannot be read."""
    port = free_port()
    proxy = start_proxy(url, "--port", str(port), ready=False, **ways)
    proxy.url = f"http://127.0.0.1:{port}"
    until(lambda: proxy.process.poll() is not None or not refuses(proxy.url), START_SECONDS)
    return proxy


def test_output_that_nobody_reads(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The proxy starts and goes on where the pipes of its output and its log are full."""
    (unread, banner), (read, end) = small_pipe(), small_pipe()
    os.write(banner, b"x" * PIPE_SIZE)
    with closing(os.fdopen(read, "rb")) as log:
        proxy = start_unseen(simulator.url, start_proxy, stdout=banner, stderr=end)
        os.close(end)
        asks(proxy, 200)
        lines = [log.readline() for _ in range(200)]
        assert [line.split()[1] for line in lines] == [b"miss]"] + [b"hit]"] * 199
        asks(proxy, 1)
        assert log.readline().startswith(b"[Cache hit]")
    asks(proxy, 200)
    assert proxy.stop() == 0
    os.close(unread)
    os.close(banner)


@each(
    ("closed", "ways"),
    [
        ((1,), {"first": "import os; os.close(1)"}),
        ((2,), {"first": "import os; os.close(2)"}),
        # What is imported with them closed may open files, too.
        ((0, 1, 2), {"executed": True, "preexec_fn": lambda: os.closerange(0, 3)}),
    ],
)
def test_closed(
    closed: tuple[int, ...],
    ways: dict[str, Any],
    simulator: Simulator,
    start_proxy: StartProxy,
    tmp_path: Path,
) -> None:
    """No file gets the number of a closed standard descriptor, and what is printed there."""
    cache = tmp_path / str(closed)
    proxy = start_unseen(simulator.url, start_proxy, cache=cache, **ways)
    asks(proxy, 3)
    for fd in closed:
        assert Path(f"/proc/{proxy.process.pid}/fd/{fd}").readlink() == Path(os.devnull)
    assert proxy.stop() == 0
    assert "(1 entries, 1 samples)" in start_proxy(simulator.url, cache=cache).banner


OWN_TERMINAL = """
import fcntl, os, termios
os.setsid()
fcntl.ioctl(1, termios.TIOCSCTTY, 0)
os.dup2(1, 0)
"""


def test_terminal_that_goes_away(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The proxy outlives the window that it was started in."""
    keeper, user = terminal()
    proxy = start_unseen(simulator.url, start_proxy, stdout=user, stderr=user, first=OWN_TERMINAL)
    os.close(user)
    asks(proxy, 1)
    os.close(keeper)
    asks(proxy, 2)
    assert proxy.stop() == 0
    assert "(1 entries, 1 samples)" in start_proxy(simulator.url).banner
