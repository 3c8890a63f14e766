"""One measurement: of servers that are started, loads that are put on them, and what fails.

What is measured together, and in which order, is in `bench`.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import orjson

from benchmarks import client, entries, servers, wrk
from benchmarks.bounds import entries as entries_name
from benchmarks.calls import SMALL
from benchmarks.cases import Case, load
from benchmarks.results import Results
from benchmarks.servers import Server

FAILURES = (
    servers.ServerError, client.NotAsClaimed, wrk.WrkError,
    OSError, ValueError, subprocess.SubprocessError,
)  # fmt: skip


class Measuring:
    """Measures, and notes the figures and what fails."""

    def __init__(
        self,
        wrk_path: str | None,
        seconds: int,
        is_wanted: Callable[[str], bool],
        work: Path,
    ) -> None:
        self.results = Results()
        self.seconds = seconds
        self.is_wanted = is_wanted
        self._wrk = wrk_path
        self._work = work
        # The journals that are complete, by their entries.
        self._written: set[int] = set()
        # The numbers of requests that must be new, out of the way of all entries.
        self._unused = itertools.count(1_000_000_000, 10_000_000)

    def new_numbers(self) -> int:
        """The first of the numbers of requests that nobody has sent yet."""
        return next(self._unused)

    def add(
        self,
        name: str,
        unit: str,
        reference: str,
        server: Server,
        turn: int,
        value: float,
        target: str = "",
    ) -> None:
        if self.is_wanted(name.split()[0]):
            self.results.add(name, unit, reference, target or server.name, turn, value)

    def wants(self, case: Case) -> bool:
        return self._wrk is not None and self.is_wanted(case.name)

    def start(self, stack: ExitStack, context: AbstractContextManager[Server]) -> Server | None:
        with self.attempt("start"):
            return stack.enter_context(context)
        return None

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        try:
            yield
        except FAILURES as e:
            self.results.failures.append(f"{what}: {e}")
            say(f"failed: {what}: {e}")

    def load(self, case: Case, targets: Sequence[Server], turn: int) -> None:
        """Has wrk load each target."""
        assert self._wrk
        say(f"round {turn + 1}: {case.name}")
        for server in rotated(targets, turn):
            with self.attempt(f"{case.name} {server.name}"):
                unused, began = self.new_numbers(), server.cpu()
                figures = load(self._wrk, case, server, turn, unused, self.seconds)
                for name, unit, value in case.rows(figures):
                    self.add(name, unit, case.reference, server, turn, value)
                if case.is_rate:
                    cpu = (server.cpu() - began) / figures.requests * 1e6
                    self.add(f"{case.name} cpu", "µs", case.reference, server, turn, cpu)

    def stream(
        self,
        name: str,
        unit: str,
        reference: str,
        server: Server,
        turn: int,
        streams: int,
        events: int,
        *options: str,
        target: str | None = "",
        start: int | None = None,
    ) -> None:
        """One measurement, for the server or the `target` that it is; None keeps no figure."""
        say(f"round {turn + 1}: {name} {target or server.name}")
        start = self.new_numbers() if start is None else start
        command = [sys.executable, "-m", "benchmarks.streams", str(server.port),
                   "--streams", str(streams), "--events", str(events), "--start", str(start),
                   *options]  # fmt: skip
        with self.attempt(f"{name} {target or server.name}"):
            began = server.cpu()
            done = subprocess.run(
                command, cwd=servers.ROOT, capture_output=True, text=True, timeout=600
            )
            if done.returncode:
                raise ValueError(done.stderr.strip())
            found = orjson.loads(done.stdout)
            value = found["rate" if unit == "/s" else "first_ms"]
            if target is not None:
                self.add(name, unit, reference, server, turn, value, target)
            if target is not None and unit == "/s":
                cpu = (server.cpu() - began) / (streams * events * found["times"]) * 1e6
                self.add(f"{name} cpu", "µs", reference, server, turn, cpu, target)

    def start_filled(
        self, stack: ExitStack, stub: Server, sizes: Sequence[int], copies: Path | None = None
    ) -> list[Server]:
        """Proxies whose caches were written ahead, on copies of them if there is a folder for
        these; without those that fail."""
        started: list[Server] = []
        for size in sizes:
            name = entries_name(size)
            with self.attempt(f"start {name}"):
                folder = self.journal(size)
                if copies:
                    folder = shutil.copytree(folder, copies / folder.name)
                server = stack.enter_context(servers.ours(stub, folder, name, entries=size))
                client.check(server.port, SMALL, size - 1, "HIT")
                started.append(server)
                # What the disk takes is its own: the system may have let go of the file.
                (folder / "cache.jsonl").read_bytes()
        return started

    def journal(self, size: int) -> Path:
        """A folder with a cache of so many entries, made when it is first wanted."""
        folder = self._work / f"entries-{size}"
        if size not in self._written:
            say(f"writing a journal of {size:,} entries")
            entries.write_journal(folder, SMALL, size)
            self._written.add(size)
        return folder


def rotated(targets: Sequence[Server], turn: int) -> list[Server]:
    """Another one is first in every round."""
    start = turn % len(targets) if targets else 0
    return [*targets[start:], *targets[:start]]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
