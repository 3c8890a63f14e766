"""The servers that are measured: each a process that this one starts, watches and ends.

`running` starts one, waits until it answers, and ends it by its own handle however the
block is left. A server that does not start, or is gone, is a `ServerError` with its log.
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sglang_cached_addon
from benchmarks.client import get

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))
START_SECONDS = 300.0
"""A million entries take their time to load."""
STOP_SECONDS = 15.0

DIRECT, NGINX, MITMDUMP, OURS = "direct", "nginx", "mitmdump", "sglang-cached"
UNSTORED = "sglang-cached, unstored"
"""Ours with calls that it passes on without a look at the answer."""
READ, LINES = "reading the file", "reading its lines"
ANEW, KEPT = "index made anew", "index kept"
FAR, NEAR = "from disk", "from memory"
COMPACTING, SETTLED = "while compacting", "afterwards"
JSON, RELAYED, REPLAYED = "JSON hit", "relayed", "replayed"
QUIET = "quiet"
OUTSIDE, IN_RUNS = "of no run", "in runs"
EARLY, LATE = "after 10,000", "after 20,000"
"""Ours, in what it does."""


class ServerError(Exception):
    """A server did not start, or ended."""


@dataclass(frozen=True, slots=True)
class Server:
    """A process that answers on a port of this machine."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    start_seconds: float
    """From its start to its first answer."""
    entries: int = 0
    """Written ahead: the numbers 0 to `entries` - 1 of the small call are hits."""
    draws: int = 0
    """Calls are in runs, each of which draws so many samples of one pool."""

    @property
    def caches(self) -> bool:
        return self.name != DIRECT

    @property
    def counts(self) -> bool:
        """Whether it says how many hits and misses it had."""
        return self.name not in (DIRECT, NGINX)

    def memory(self, field: str) -> float:
        """MiB of it and its children: `VmRSS` is now, `VmHWM` the peak."""
        pid = self.process.pid
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return sum(_status(p, field) for p in [pid, *children]) / 1024

    def cpu(self) -> float:
        """Seconds of processors that it and its children have used."""
        pid = self.process.pid
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        ticks = 0
        for each in (pid, *children):
            words = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])  # user and system
        return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int | str) -> int:
    """Bytes of memory of a process; "self" is this one."""
    return _status(pid, "VmRSS") * 1024


def _status(pid: int | str, field: str) -> int:
    """Kilobytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


@contextmanager
def running(
    name: str, command: list[str], port: int, probe: str, entries: int = 0
) -> Iterator[Server]:
    """A server, once GET `probe` gives 200."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_CACHED_")}
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environment
        )
        try:
            while not _answers(port, probe):
                if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    log.seek(0)
                    said = log.read().decode(errors="replace").split("\n")
                    last = " / ".join([line.strip() for line in said if line.strip()][-3:])
                    raise ServerError(f"{name} does not start: {last}")
                time.sleep(0.005)
            yield Server(name, port, process, time.monotonic() - began, entries)
        finally:
            _end(process)


def _answers(port: int, path: str) -> bool:
    try:
        return get(port, path).status == 200
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def direct() -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.stub", "--port", str(port)]
    with running(DIRECT, command, port, "/v1/models") as server:
        yield server


@contextmanager
def moody(key: str) -> Iterator[Server]:
    """An upstream that is not always well, and may ask for a key."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.moody", "--port", str(port), "--key", key]
    with running(DIRECT, command, port, "/health") as server:
        yield server


@contextmanager
def nginx(program: str, stub: Server) -> Iterator[Server]:
    port = free_port()
    # The cache in memory where there is a folder for that, as ours is.
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="nginx-", dir=shm if os.access(shm, os.W_OK) else None
    ) as folder:
        is_root = os.geteuid() == 0
        conf = Path(folder) / "nginx.conf"
        conf.write_text(
            Path(__file__).with_name("nginx.conf").read_text().format(
                folder=folder, port=port, stub_port=stub.port,
                user=f"user {pwd.getpwuid(os.geteuid()).pw_name};" if is_root else "",
            )
        )  # fmt: skip
        command = [program, "-e", "stderr", "-p", folder, "-c", str(conf)]
        with running(NGINX, command, port, "/v1/models") as server:
            yield server


@contextmanager
def mitmdump(stub: Server, cache: Path) -> Iterator[Server]:
    """Stock mitmdump with the installed addon."""
    port = free_port()
    addon = Path(sglang_cached_addon.__file__).with_name("addon.py")
    settings = {"listen_host": "127.0.0.1", "listen_port": port, "confdir": cache / "conf",
                "sglang_quiet": "true", "sglang_cache_path": cache}  # fmt: skip
    command = [str(SCRIPTS / "mitmdump"), "-q", "-s", str(addon),
               "--mode", f"reverse:http://127.0.0.1:{stub.port}"]  # fmt: skip
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    with running(MITMDUMP, command, port, "/cache/stats") as server:
        yield server


@contextmanager
def ours(stub: Server, cache: Path, name: str = OURS, entries: int = 0) -> Iterator[Server]:
    """The command as users start it."""
    port = free_port()
    command = [str(SCRIPTS / "sglang-cached"), "start",
               "--sglang-url", f"http://127.0.0.1:{stub.port}", "--host", "127.0.0.1",
               "--port", str(port), "--cache-path", str(cache), "--quiet"]  # fmt: skip
    with running(name, command, port, "/cache/stats", entries) as server:
        yield server
