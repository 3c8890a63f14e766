"""What is measured without the stub: a store that is opened, and hits under attack."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from benchmarks import entries, meanwhile, servers
from benchmarks.attacks import ATTACKS
from benchmarks.calls import SMALL
from benchmarks.cases import STORE
from benchmarks.measuring import Measuring, say
from benchmarks.servers import ANEW, FAR, KEPT, LINES, NEAR, QUIET, READ


def store(measuring: Measuring, turn: int, size: int) -> None:
    """A journal of so many entries without its index, and with it."""
    if not any(map(measuring.is_wanted, STORE)):
        return
    with measuring.attempt("store"):
        folder = measuring.journal(size)
        found = {}
        for name in (ANEW, KEPT):
            if name == ANEW:
                (folder / "cache.index").unlink(missing_ok=True)
            say(f"round {turn + 1}: open, {name}")
            command = [sys.executable, "-m", "benchmarks.opening", str(folder)]
            done = subprocess.run(
                command, cwd=servers.ROOT, capture_output=True, text=True, timeout=600
            )
            if done.returncode:
                raise ValueError(done.stderr.strip())
            found[name] = orjson.loads(done.stdout)
        rows = {
            "open": ("s", LINES, {READ: found[KEPT]["read"], LINES: found[KEPT]["lines"],
                                  ANEW: found[ANEW]["open"], KEPT: found[KEPT]["open"]}),
            "entry": ("B", KEPT, {name: found[name]["entry"] for name in (ANEW, KEPT)}),
            "get": ("µs", NEAR, {FAR: found[KEPT]["far"], NEAR: found[KEPT]["near"]}),
        }  # fmt: skip
        for row, (unit, reference, values) in rows.items():
            if measuring.is_wanted(row):
                for target, value in values.items():
                    measuring.results.add(row, unit, reference, target, turn, value)


def attacked(measuring: Measuring, turn: int, work: Path) -> None:
    """Hits while others do their worst, each time with servers of its own."""
    quiets: list[meanwhile.Times] = []
    for attack in ATTACKS:
        row = f"meanwhile {attack.name}"
        if not (measuring.is_wanted("meanwhile") or measuring.is_wanted(row)):
            continue
        say(f"round {turn + 1}: {row}")
        with measuring.attempt(row), TemporaryDirectory(dir=work) as name:
            folder = Path(name)
            if attack.entries:
                entries.write_journal(folder, SMALL, attack.entries, times=3)
            with (
                servers.moody(attack.key) as upstream,
                servers.ours(upstream, folder, entries=attack.entries) as server,
            ):
                quiet, times, done = meanwhile.measure(
                    attack, server, upstream, folder, measuring.seconds
                )
            say(f"    done {done} times")
            _add_times(measuring, attack.name, turn, [times])
            quiets += [quiet] if quiet else []
    _add_times(measuring, QUIET, turn, quiets)


def _add_times(
    measuring: Measuring, target: str, turn: int, times: Sequence[meanwhile.Times]
) -> None:
    """The median of each figure."""
    for row, figure in (("p50", "p50"), ("p99", "p99"), ("max", "highest")):
        if times:
            value = statistics.median(getattr(of, figure) for of in times)
            measuring.results.add(f"meanwhile {row}", "µs", QUIET, target, turn, value)
