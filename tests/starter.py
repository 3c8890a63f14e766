"""Processes of `sglang-cached`, mitmdump and mitmweb that are forked from one which has imported
everything.

Four fifths of a start are imports, and hundreds of tests start a proxy. Such a process is like one
that a shell starts: it has its own environment, folder, limits, output and exit code, runs the
command line from its first argument on, and waits for its threads at the end. Run as a program,
this module is the process that forks; `Started` stands for a forked one, as `subprocess.Popen`
does.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)


class Started:
    """A process that `Starter` has forked, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, report: int, stdout: IO[bytes] | None) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._report = report

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            (self.returncode,) = struct.unpack("i", os.read(self._report, 4))
            os.close(self._report)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Starter:
    """The forking process, seen from a test."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of who asks for a process
        self._control, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(theirs.fileno())]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_CACHED_")}
        environment["PYTHONUNBUFFERED"] = "1"
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
        )  # fmt: skip
        theirs.close()

    def start(
        self,
        command: list[str],
        cwd: Path,
        env: dict[str, str],
        *,
        stderr: int,
        stdout: int | None = None,
        first: str = "",
    ) -> Started:
        """Fork one that runs this command line, and before it what is said in Python to be done
        `first`; where its output goes nowhere else, it can be read from the process's `stdout`."""
        report, reported = os.pipe()
        output, written = os.pipe() if stdout is None else (None, os.dup(stdout))
        about = json.dumps(
            {
                "argv": command,
                "cwd": str(cwd),
                "env": env,
                "first": first,
                "limits": [resource.getrlimit(limit) for limit in _LIMITS],
            }
        )
        try:
            socket.send_fds(
                self._control, [struct.pack("i", len(about))], [written, stderr, reported]
            )
            self._control.sendall(about.encode())
        finally:
            os.close(written)
            os.close(reported)
        (pid,) = struct.unpack("i", _exactly(self._control, 4))
        return Started(pid, report, None if output is None else os.fdopen(output, "rb", 0))

    def close(self) -> None:
        self._control.close()
        self._process.wait(60)


def _exactly(control: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = control.recv(count - len(data))
        if not piece:
            raise EOFError("the process that starts others is gone")
        data += piece
    return data


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; what to run in a forked process, nothing when all is done."""
    reports: dict[int, int] = {}  # by process, where its end is told
    ended, woken = socket.socketpair()
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    while True:
        ready = select.select([control, ended], [], [])[0]
        if ended in ready:
            ended.recv(4096)
            _reap(reports)
        if control not in ready:
            continue
        data, files, _, _ = socket.recv_fds(control, 4, 3)
        if not data:
            return None
        about = json.loads(_exactly(control, *struct.unpack("i", data)))
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(files[0], 1)
            os.dup2(files[1], 2)
            for number in [*files, *reports.values()]:
                os.close(number)
            for one in (control, ended, woken):
                one.close()
            return dict(about)
        reports[pid] = files[2]
        os.close(files[0])
        os.close(files[1])
        control.sendall(struct.pack("i", pid))


def _reap(reports: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            report = reports.pop(found[0])
            with contextlib.suppress(BrokenPipeError):
                os.write(report, struct.pack("i", os.waitstatus_to_exitcode(found[1])))
            os.close(report)


def _leave(code: int | str) -> None:
    """Ends as the interpreter does, but for taking all modules apart: that writes to each page of
    memory that is shared by what was forked, and takes as long as the start."""
    if isinstance(code, int):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import gc

    del sys.path[0]  # what is imported is what is installed

    from mitmproxy.tools.main import mitmdump, mitmweb

    import sglang_cached_addon.archive.exporting
    import sglang_cached_addon.archive.importing
    import sglang_cached_addon.archive.merging
    import sglang_cached_addon.cli
    import sglang_cached_addon.cli.offline
    import sglang_cached_addon.dialects
    import sglang_cached_addon.proxy.runner

    sglang_cached_addon.dialects.installed()
    gc.freeze()
    if about := _serve(socket.socket(fileno=int(sys.argv[1]))):
        os.chdir(about["cwd"])
        os.environ.clear()
        os.environ.update(about["env"])
        for limit, values in zip(_LIMITS, about["limits"], strict=True):
            resource.setrlimit(limit, values)
        sys.argv = about["argv"]
        exec(about["first"], {})
        programs = {
            "sglang-cached": sglang_cached_addon.cli.main,
            "mitmdump": mitmdump,
            "mitmweb": mitmweb,
        }
        try:
            sys.exit(programs[Path(sys.argv[0]).name]())
        except SystemExit as end:
            _leave(end.code or 0)
            raise
