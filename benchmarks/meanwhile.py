"""Hits of one client, one after the other, when it is quiet and while an attack goes on.

The client is this process, on one connection that is kept; the attack, the proxy and its
upstream are others. A hit is sent a millisecond after the one before it, or once that is
answered; one that takes longer counts for all those, too, that would have come meanwhile, so that
a long stall is not one of many quick hits. Times are in microseconds.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import servers
from benchmarks.attacks import KEY, Attack
from benchmarks.calls import SMALL
from benchmarks.client import NotAsClaimed
from benchmarks.servers import Server

STEP = 0.001
"""Seconds from one hit to the next."""
FILL_SECONDS = 10.0
"""Within which the call becomes a hit."""
LIMIT = 60.0
"""Seconds that an attack may take in all."""


@dataclass(frozen=True, slots=True)
class Times:
    p50: float
    p99: float
    highest: float

    @classmethod
    def of(cls, took: list[float]) -> Times:
        if len(took) < 2:
            raise ValueError("too few hits to tell")
        percentiles = statistics.quantiles(took, n=100, method="inclusive")
        return cls(percentiles[49], percentiles[98], max(took))


def waits(seconds: float) -> list[float]:
    """What one hit that took so long stands for."""
    return [(seconds - STEP * i) * 1e6 for i in range(1 + int(seconds / STEP))]


class Client:
    """The one that is measured."""

    def __init__(self, port: int) -> None:
        body = SMALL.body(0)
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = (
            f"POST {SMALL.path} HTTP/1.1\r\nHost: stub\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def ask(self) -> bytes:
        """The head of an answer, in lower case."""
        self._socket.sendall(self._request)
        data = b""
        while True:
            more = self._socket.recv(1 << 16)
            if not more:
                raise OSError("the connection was closed")
            data += more
            head, found, body = data.lower().partition(b"\r\n\r\n")
            if found and len(body) >= int(head.partition(b"\r\ncontent-length:")[2].split()[0]):
                return head

    def fill(self) -> None:
        """Asks until it is a hit."""
        deadline = time.monotonic() + FILL_SECONDS
        while b"\r\nx-cache: hit" not in (head := self.ask()):
            if time.monotonic() > deadline:
                raise NotAsClaimed(f"HIT expected, got {head.decode('latin-1')}")
            time.sleep(0.01)

    def hits(self, is_over: Callable[[], bool]) -> Times:
        """One after the other, until it is over; raises `NotAsClaimed` if one is none."""
        took: list[float] = []
        while not is_over():
            began = time.perf_counter()
            head = self.ask()
            wait = time.perf_counter() - began
            if b"\r\nx-cache: hit" not in head:
                raise NotAsClaimed(f"HIT expected, got {head.decode('latin-1')}")
            took += waits(wait)
            time.sleep(max(0.0, STEP - wait))
        return Times.of(took)

    def close(self) -> None:
        self._socket.close()


def measure(
    attack: Attack, server: Server, upstream: Server, folder: Path, seconds: float
) -> tuple[Times | None, Times, int]:
    """Quiet hits (none where the attack begins by itself), hits meanwhile, and how often the
    attack was done. Raises `NotAsClaimed`, or ValueError with what the attack says."""
    client = Client(server.port)
    try:
        client.fill()
        quiet = None
        if not attack.entries:
            end = time.monotonic() + seconds
            quiet = client.hits(lambda: time.monotonic() > end)
        command = [sys.executable, "-m", "benchmarks.attacks", attack.name,
                   "--port", str(server.port), "--upstream", str(upstream.port),
                   "--folder", str(folder), "--seconds", str(seconds)]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=servers.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()
            end = time.monotonic() + LIMIT
            times = client.hits(lambda: process.poll() is not None or time.monotonic() > end)
        finally:
            process.kill()
            said, failed = process.communicate()
        if process.returncode:
            raise ValueError(failed.strip() or "the attack does not end")
        return quiet, times, int(said)
    finally:
        client.close()
