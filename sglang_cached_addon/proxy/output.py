"""Standard output and error that never wait for who reads them.

A pipe that nobody reads, a terminal that is stopped or gone, a full disk: what cannot be written at
once is kept, up to a bound, and written when it can be; what goes beyond is counted, and that is
said later. Writing raises nothing. `guard` puts such streams in the place of `sys.stdout` and
`sys.stderr`, for all that prints or logs.
"""

from __future__ import annotations

import io
import os
import select
import socket
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

MAX_KEPT = 1 << 20
"""How many bytes are kept at most for a reader that does not read."""

SETTLE_SECONDS = 0.5
"""How many seconds the end of the process waits for such a reader."""

_PIECE = 4096
"""How many bytes fit into a pipe that has room for any (PIPE_BUF)."""

Write = Callable[[bytes], int]
"""Writes what can be written at once, and says how much that was. Raises `BlockingIOError` where
nothing can, and another `OSError` where nothing ever will, or not soon."""


class Output(io.RawIOBase):
    """A stream of bytes to a file descriptor, whose writes wait for nobody."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._write, self._release = _writer(fd)
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._lost = 0
        """How many lines were neither written nor kept."""
        self._lock = threading.Lock()
        self._waiter: threading.Thread | None = None
        """The thread that waits for the reader, as long as something is kept."""

    def write(self, data: Any) -> int:
        data = bytes(data)
        with self._lock:
            if self._waiter:
                self._keep(data)
            else:
                self._send(data)
        return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def close(self) -> None:
        """Lets go of what is its own; the descriptor is not."""
        if not self.closed:
            self._release()
        super().close()

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Waits until all is written, but no longer than that."""
        if waiter := self._waiter:
            waiter.join(seconds)

    def _send(self, data: bytes) -> None:
        """Writes; what cannot be written now is kept, and its reader waited for."""
        try:
            left = self._push(self._notice() + data)
        except OSError:
            self._lost += data.count(b"\n")
            return
        self._lost = 0
        if left:
            self._keep(left)
            self._waiter = threading.Thread(target=self._wait, name="output", daemon=True)
            self._waiter.start()

    def _push(self, data: bytes) -> bytes:
        """Writes as much as can be written now; the rest. Raises `OSError`."""
        with suppress(BlockingIOError):
            while data:
                data = data[self._write(data) :]
        return data

    def _keep(self, data: bytes) -> None:
        if self._kept_bytes + len(data) > MAX_KEPT:
            self._lost += data.count(b"\n")
        else:
            self._kept.append(data)
            self._kept_bytes += len(data)

    def _notice(self) -> bytes:
        return b"sglang-cached: %d lines are missing here\n" % self._lost if self._lost else b""

    def _wait(self) -> None:
        """Writes what is kept, as it is read."""
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT)
        while True:
            ready.poll()
            with self._lock:
                if not self._write_kept():
                    self._waiter = None
                    return

    def _write_kept(self) -> bool:
        """Whether there is something left to be written."""
        try:
            while self._kept:
                data = self._kept[0]
                left = self._kept[0] = self._push(data)
                self._kept_bytes -= len(data) - len(left)
                if left:
                    return True
                self._kept.popleft()
            left = self._push(self._notice())
            self._lost = 0
            if left:
                self._keep(left)
        except OSError:
            self._lost += sum(data.count(b"\n") for data in self._kept)
            self._kept.clear()
            self._kept_bytes = 0
        return bool(self._kept)


def guard() -> Callable[[], None]:
    """From here on, what is printed or logged waits for nobody. To be called before files are
    opened: where a standard descriptor is closed, the next file would get its number, and what is
    printed. What is returned waits a moment for what is not yet written."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    outputs: list[Any] = [Output(fd) for fd in (1, 2)]
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(output, "utf-8", "backslashreplace", line_buffering=True)
        for output in outputs
    )

    def settle() -> None:
        for output in outputs:
            output.settle()

    return settle


def _writer(fd: int) -> tuple[Write, Callable[[], None]]:
    """What writes, and what is to be called when that is over."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return lambda data: os.write(fd, data), lambda: None
    if stat.S_ISSOCK(mode):
        end = socket.socket(fileno=os.dup(fd))
        return lambda data: end.send(data, socket.MSG_DONTWAIT), end.close
    try:
        # Another description of the same pipe or terminal: not to wait is a property of it, and
        # the first one may be shared with other processes.
        own = os.open(f"/dev/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return _looking_first(fd), lambda: None
    return lambda data: os.write(own, data), lambda: os.close(own)


def _looking_first(fd: int) -> Write:
    ready = select.poll()
    ready.register(fd, select.POLLOUT)

    def write(data: bytes) -> int:
        if not ready.poll(0):
            raise BlockingIOError
        return os.write(fd, data[:_PIECE])

    return write
