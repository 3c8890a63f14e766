"""Runs wrk, and reads what it prints.

A run that had errors of any kind is no measurement: `WrkError`. Times are in microseconds.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.calls import Call

SCRIPT = Path(__file__).with_name("load.lua")
_MICROSECONDS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


class WrkError(Exception):
    """wrk failed, or some of its requests did."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of wrk found."""

    p50: float
    p99: float
    rate: float
    """Requests a second."""
    requests: int


def parse(output: str) -> Figures:
    """Reads the output of `wrk --latency`; raises `WrkError`."""
    for failure in (r"Non-2xx or 3xx responses: .*", r"Socket errors: .*"):
        if found := re.search(failure, output):
            raise WrkError(found[0])
    times = {
        percentile: float(value) * _MICROSECONDS[unit]
        for percentile, value, unit in re.findall(r"^ +(\d+)% +([\d.]+)(us|ms|s|m)$", output, re.M)
    }
    rate = re.search(r"^Requests/sec: +([\d.]+)$", output, re.M)
    requests = re.search(r"^ +(\d+) requests in ", output, re.M)
    if not (rate and requests and int(requests[1]) and {"50", "99"} <= times.keys()):
        raise WrkError(f"not what wrk prints: {output!r}")
    return Figures(times["50"], times["99"], float(rate[1]), int(requests[1]))


def run(
    wrk: str, port: int, call: Call, numbers: Sequence[object], connections: int, seconds: int
) -> Figures:
    """Loads a port of this machine. `numbers` are the arguments of `load.lua` behind the file."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(call.template.encode())
        file.flush()
        command = [wrk, "--threads=1", f"--connections={connections}", f"--duration={seconds}s",
                   "--timeout=10s", "--latency", f"--script={SCRIPT}",
                   f"http://127.0.0.1:{port}{call.path}", "--", file.name,
                   *map(str, numbers)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise WrkError(f"exit code {done.returncode}: {done.stderr.strip()}")
    return parse(done.stdout)
