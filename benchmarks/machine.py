"""What a run ran on: facts for the head of the table. Reads, changes nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def facts(wrk: str | None, nginx: str | None, rounds: int, seconds: int) -> dict[str, str]:
    """Names and values, in the order in which they are printed."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpus": f"{os.cpu_count()} ({_cpu()}), load average {os.getloadavg()[0]:.1f} at the start",
        "python": platform.python_version(),
        "mitmproxy": version("mitmproxy"),
        "sglang-cached": version("sglang-cached"),
        "nginx": _version(nginx, r"nginx/([\d.]+)"),
        "wrk": _version(wrk, r"wrk (\S+)"),
        "rounds": f"{rounds} of {seconds} s",
    }


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _version(program: str | None, pattern: str) -> str:
    if program is None:
        return "not there; its rows are skipped"
    done = subprocess.run([program, "-v"], capture_output=True, text=True)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"
