"""Real `redis-server` processes for the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.ports import free_port

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None,
    reason="NO redis-server HERE: nothing that is shared is tested (apt-get install redis-server)",
)


@contextmanager
def running_redis(folder: Path, *arguments: str, port: int) -> Iterator[None]:
    """A `redis-server` with these arguments, once it answers at that port."""
    with open(folder / "more.log", "ab") as log:
        process = subprocess.Popen(["redis-server", *arguments], stdout=log, stderr=log)
    try:
        _wait(process, port, folder / "more.log")
        yield
    finally:
        process.kill()
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns when something answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            threading.Event().wait(0.01)


class RedisServer:
    """A server of its own, with its own folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self.folder / "redis.log", "ab") as log:
            self.process = subprocess.Popen(
                ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
                 "--dir", str(self.folder), *self._options],
                stdout=log, stderr=log,
            )  # fmt: skip
        _wait(self.process, self.port, self.folder / "redis.log")

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.port, retry=None, **options)

    def signal(self, number: int) -> None:
        assert self.process
        os.kill(self.process.pid, number)

    def stop(self) -> None:
        """Ends it at once; what it has on disk stays."""
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(60)
            self.process = None
