"""Output that nobody reads, or that has nowhere to go."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import resource
import socket
import termios
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_cached_addon.proxy.output import MAX_KEPT, Output
from tests.conftest import Proxy, StartProxy, until
from tests.e2e.test_proxy import BODIES
from tests.proxy.test_lifetime import free_port, refuses
from tests.simulator import Simulator

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


ENDS = {"pipe": small_pipe, "socket": small_sockets, "terminal": terminal}


@pytest.fixture(params=ENDS)
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Where it can be read, and where it is written."""
    ends = ENDS[request.param]()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


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


def test_nobody_reads(ends: tuple[int, int]) -> None:
    """Who writes never waits; what is kept is bounded, and written when it can be."""
    out = Output(ends[1])
    write(out, 2 * MAX_KEPT // len(LINE))
    kept = MAX_KEPT // len(LINE)
    lines = read_lines(ends[0], kept)
    assert lines[: kept - 1] == [LINE] * (kept - 1)
    while not (rest := lines[-1]).startswith(b"sglang-cached: "):
        lines += read_lines(ends[0], 1)
    assert lines[:-1] == [LINE] * (len(lines) - 1)
    assert rest == b"sglang-cached: %d lines are missing here\n" % (
        2 * MAX_KEPT // len(LINE) - len(lines) + 1
    )
    until(lambda: not writers())
    write(out, 1)
    assert read_lines(ends[0], 1) == [LINE]


def test_nobody_is_there(ends: tuple[int, int]) -> None:
    """Who writes gets no error of whoever reads."""
    out = Output(ends[1])
    write(out, 1)
    os.close(ends[0])
    write(out, 10)


def test_who_leaves_while_something_is_kept(ends: tuple[int, int]) -> None:
    """No thread waits for ever or runs hot."""
    out = Output(ends[1])
    write(out, 4000)
    assert writers()
    os.close(ends[0])
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


def test_file(tmp_path: Path) -> None:
    """The log is in its file, in order."""
    with open(tmp_path / "log", "wb") as file:
        out: Any = Output(file.fileno())
        text = io.TextIOWrapper(out, "utf-8", "backslashreplace", line_buffering=True)
        print("one", file=text)
        print("two \udcff \u4f60", file=text)
        out.settle()
        assert (tmp_path / "log").read_text("utf-8") == "one\ntwo \\udcff \u4f60\n"
        text.detach()


# The proxy


def asks(proxy: Proxy, count: int) -> None:
    """Has it log so many lines."""
    with requests.Session() as session:
        for _ in range(count):
            answer = session.post(f"{proxy.url}/generate", json=BODIES["/generate"], timeout=10)
            assert answer.status_code == 200


def start_unseen(url: str, start_proxy: StartProxy, **popen: Any) -> Proxy:
    """One whose banner cannot be read."""
    port = free_port()
    proxy = start_proxy(url, "--port", str(port), ready=False, **popen)
    proxy.url = f"http://127.0.0.1:{port}"
    until(lambda: proxy.process.poll() is not None or not refuses(proxy.url), 30)
    return proxy


def test_log_that_nobody_reads(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The proxy goes on when the pipe of its log is full."""
    read, end = small_pipe()
    with closing(os.fdopen(read, "rb")) as log:
        proxy = start_proxy(simulator.url, stderr=end)
        os.close(end)
        asks(proxy, 200)
        lines = [log.readline() for _ in range(200)]
        assert [line.split()[1] for line in lines] == [b"miss]"] + [b"hit]"] * 199
        asks(proxy, 1)
        assert log.readline().startswith(b"[Cache hit]")
    asks(proxy, 200)
    assert proxy.stop() == 0


def test_banner_that_nobody_reads(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The proxy starts where its output is not read."""
    read, end = small_pipe()
    os.write(end, b"x" * PIPE_SIZE)
    proxy = start_unseen(simulator.url, start_proxy, stdout=end)
    asks(proxy, 2)
    assert proxy.stop() == 0
    assert "Traceback" not in proxy.log
    os.close(read)
    os.close(end)


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_closed(closed: tuple[int, ...], simulator: Simulator, start_proxy: StartProxy) -> None:
    """No file gets the number of a closed standard descriptor, and what is printed there."""

    def close() -> None:
        for fd in closed:
            os.close(fd)

    proxy = start_unseen(simulator.url, start_proxy, preexec_fn=close)
    asks(proxy, 3)
    for fd in closed:
        assert Path(f"/proc/{proxy.process.pid}/fd/{fd}").readlink() == Path(os.devnull)
    assert proxy.stop() == 0
    again = start_proxy(simulator.url)
    assert "(1 entries, 1 samples)" in again.banner


def test_terminal_that_goes_away(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The proxy outlives the window that it was started in."""
    keeper, user = terminal()

    def own_it() -> None:
        os.setsid()
        fcntl.ioctl(user, termios.TIOCSCTTY, 0)

    proxy = start_unseen(
        simulator.url, start_proxy, stdin=user, stdout=user, stderr=user, preexec_fn=own_it
    )
    os.close(user)
    asks(proxy, 1)
    os.close(keeper)
    asks(proxy, 2)
    assert proxy.stop() == 0
    again = start_proxy(simulator.url)
    assert "(1 entries, 1 samples)" in again.banner
