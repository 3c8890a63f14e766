"""One run: rounds of all cases, each round with servers of its own.

So start-up, memory and luck with either are measured as often as the rest. What fails is
noted, and the rest goes on; whatever happens, the servers of a round end with it.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson

from benchmarks import client, entries, meanwhile, servers, wrk
from benchmarks.attacks import ATTACKS
from benchmarks.bounds import entries as entries_name
from benchmarks.calls import SMALL
from benchmarks.cases import (
    COMPACT,
    COMPACT_ENTRIES,
    COSTS,
    REPLAYS,
    SPREAD_COSTS,
    STORE,
    STREAMS,
    TARGETS,
    Case,
    load,
    scale,
    spread,
)
from benchmarks.results import Results
from benchmarks.servers import (
    ANEW,
    COMPACTING,
    DIRECT,
    EARLY,
    FAR,
    JSON,
    KEPT,
    LATE,
    LINES,
    MITMDUMP,
    NEAR,
    NGINX,
    OURS,
    QUIET,
    READ,
    RELAYED,
    REPLAYED,
    SETTLED,
    UNSTORED,
    Server,
)

FAILURES = (
    servers.ServerError, client.NotAsClaimed, wrk.WrkError,
    OSError, ValueError, subprocess.SubprocessError,
)  # fmt: skip

COMPACT_SECONDS = 60.0
"""Within which a compaction begins, and within which it ends."""

EVENTS_PER_SECOND = 200
"""Of one stream of the stub."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many entries the caches of the `spread` and `scale` cases have."""

    few: int
    many: int
    little: int
    large: int


class Bench:
    """One run."""

    def __init__(
        self,
        *,
        wrk_path: str | None,
        nginx_path: str | None,
        seconds: int,
        sizes: Sizes,
        is_wanted: Callable[[str], bool],
        work: Path,
    ) -> None:
        self.results = Results()
        self.sizes = sizes
        self._wrk = wrk_path
        self._nginx = nginx_path
        self._seconds = seconds
        self._is_wanted = is_wanted
        self._work = work
        # The journals that are complete, by their entries.
        self._written: set[int] = set()
        # The numbers of requests that must be new, out of the way of all entries.
        self._unused = itertools.count(1_000_000_000, 10_000_000)

    def round(self, turn: int) -> None:
        """Measures everything that is wanted once."""
        with ExitStack() as stack:
            stub = self._start(stack, servers.direct())
            if stub:
                self._targets(turn, stub)
                self._replays(turn, stub)
                self._spread(turn, stub)
                self._scale(turn, stub)
                self._compact(turn, stub)
        self._store(turn)
        self._meanwhile(turn)

    def _targets(self, turn: int, stub: Server) -> None:
        """All four, side by side, with the same load."""
        cases = [case for case in TARGETS if self._wants(case)]
        others = [name for name in (*STREAMS, *COSTS) if self._is_wanted(name)]
        if not cases and not others:
            return
        work = self._work / f"targets-{turn}"
        with ExitStack() as stack:
            starts: list[AbstractContextManager[Server]] = [
                servers.mitmdump(stub, work / MITMDUMP), servers.ours(stub, work / OURS)
            ]  # fmt: skip
            if self._nginx:
                starts.insert(0, servers.nginx(self._nginx, stub))
            started = [server for start in starts if (server := self._start(stack, start))]
            for server in started:
                self._add("start", "s", MITMDUMP, server, turn, server.start_seconds)
            for case in cases:
                self._load(case, [stub, *started], turn)
            relays = [stub, *(server for server in started if server.name != NGINX)]
            if "streams-64" in others:
                events = EVENTS_PER_SECOND * self._seconds
                for server in _rotated(relays, turn):
                    self._stream("streams-64", "/s", DIRECT, server, turn, 64, events)
                    if server.name == OURS:
                        self._stream(
                            "streams-64", "/s", DIRECT, server, turn, 64, events,
                            "--unstored", target=UNSTORED,
                        )  # fmt: skip
            if "first-event" in others:
                for server in _rotated(relays, turn):
                    self._stream(
                        "first-event", "ms", DIRECT, server, turn, 1, 3,
                        "--times", str(50 * self._seconds),
                    )  # fmt: skip
            for server in (stub, *started):
                with self._attempt(f"memory {server.name}"):
                    peak = server.memory("VmHWM")
                    self._add("memory", "MiB", MITMDUMP, server, turn, peak)

    def _replays(self, turn: int, stub: Server) -> None:
        """Streams through our proxy: relayed and recorded, replayed, and let go of."""
        wanted = [name for name in REPLAYS if self._is_wanted(name)]
        if not wanted:
            return
        with ExitStack() as stack:
            server = self._start(stack, servers.ours(stub, self._work / f"replays-{turn}"))
            if server is None:
                return
            if "deltas-64" in wanted:
                # As fast as the proxy takes them; and then from the store, over and over.
                load = ("--interval-ms", "0.5", "--same")
                row = ("deltas-64", "/s", RELAYED, server, turn, 64, 400)
                start = next(self._unused)
                self._stream(*row, *load, target=RELAYED, start=start)
                again = ("--hits", "--times", str(10 * self._seconds))
                self._stream(*row, *load, *again, target=REPLAYED, start=start)
            if "first-replay" in wanted:
                once = ("first-replay", "ms", JSON, server, turn, 1, 100, "--same")
                start = next(self._unused)
                self._stream(*once, "--interval-ms", "0", target=None, start=start)
                hits = ("--hits", "--interval-ms", "0", "--times", str(300 * self._seconds))
                self._stream(*once, *hits, target=REPLAYED, start=start)
                self._stream(*once, *hits, "--json", target=JSON, start=start)
            if "streams-memory" in wanted:
                # Recorded to their ends, and then not stored: what stays would be a leak.
                memory = ("--interval-ms", "0", "--same", "--no-usage")
                start = next(self._unused)
                for target in (EARLY, LATE):
                    of = ("streams-memory", "MiB", EARLY, server, turn, 64, 100)
                    self._stream(*of, *memory, "--times", "157", target=None, start=start)
                    resident = server.memory("VmRSS")
                    self._add("streams-memory", "MiB", EARLY, server, turn, resident, target)

    def _store(self, turn: int) -> None:
        """A large journal without its index, and with it."""
        if not any(map(self._is_wanted, STORE)):
            return
        with self._attempt("store"):
            folder = self._journal(self.sizes.many)
            found = {}
            for name in (ANEW, KEPT):
                if name == ANEW:
                    (folder / "cache.index").unlink(missing_ok=True)
                _say(f"round {turn + 1}: open, {name}")
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
                if self._is_wanted(row):
                    for target, value in values.items():
                        self.results.add(row, unit, reference, target, turn, value)

    def _spread(self, turn: int, stub: Server) -> None:
        """Hits at random over few and over many entries, and what those entries cost."""
        sizes = (self.sizes.few, self.sizes.many)
        reference = entries_name(sizes[0])
        cases = [case for case in spread(reference) if self._wants(case)]
        if not cases and not any(map(self._is_wanted, SPREAD_COSTS)):
            return
        with ExitStack() as stack:
            started = self._start_filled(stack, stub, sizes)
            for server in started:
                self._add(SPREAD_COSTS[0], "s", reference, server, turn, server.start_seconds)
                self._add(SPREAD_COSTS[1], "MiB", reference, server, turn, server.memory("VmRSS"))
            for case in cases:
                self._load(case, started, turn)

    def _scale(self, turn: int, stub: Server) -> None:
        """Hits and misses with a small and with a large cache."""
        sizes = (self.sizes.little, self.sizes.large)
        reference = entries_name(sizes[0])
        cases = [case for case in scale(reference) if self._wants(case)]
        if not cases:
            return
        with ExitStack() as stack:
            # Misses write to it.
            copies = Path(stack.enter_context(TemporaryDirectory(dir=self._work)))
            started = self._start_filled(stack, stub, sizes, copies)
            for case in cases:
                self._load(case, started, turn)

    def _compact(self, turn: int, stub: Server) -> None:
        """Hits while a journal of which two thirds are dead is compacted, and afterwards."""
        if not self._wants(COMPACT):
            return
        with self._attempt("compact"), TemporaryDirectory(dir=self._work) as name:
            folder = Path(name)
            aside = folder / "cache.jsonl.new"
            entries.write_journal(folder, SMALL, COMPACT_ENTRIES, times=3)
            with servers.ours(stub, folder, COMPACTING, entries=COMPACT_ENTRIES) as server:
                for target in (COMPACTING, SETTLED):
                    is_compacting = target == COMPACTING
                    deadline = time.monotonic() + COMPACT_SECONDS
                    while aside.exists() is not is_compacting:
                        if time.monotonic() > deadline:
                            raise ValueError(f"not {target}")
                        time.sleep(0.01)
                    self._load(COMPACT, [replace(server, name=target)], turn)
                    if is_compacting and not aside.exists():
                        raise ValueError("was compacted before that was measured")

    def _meanwhile(self, turn: int) -> None:
        """Hits while others do their worst, each time with servers of its own."""
        quiets: list[meanwhile.Times] = []
        for attack in ATTACKS:
            name = f"meanwhile {attack.name}"
            if not (self._is_wanted("meanwhile") or self._is_wanted(name)):
                continue
            _say(f"round {turn + 1}: {name}")
            with self._attempt(name), TemporaryDirectory(dir=self._work) as work:
                folder = Path(work)
                if attack.entries:
                    entries.write_journal(folder, SMALL, attack.entries, times=3)
                with (
                    servers.moody(attack.key) as upstream,
                    servers.ours(upstream, folder, entries=attack.entries) as server,
                ):
                    quiet, times, done = meanwhile.measure(
                        attack, server, upstream, folder, self._seconds
                    )
                _say(f"    done {done} times")
                self._add_times(attack.name, turn, [times])
                quiets += [quiet] if quiet else []
        self._add_times(QUIET, turn, quiets)

    def _add_times(self, target: str, turn: int, times: Sequence[meanwhile.Times]) -> None:
        """The median of each figure."""
        for row, figure in (("p50", "p50"), ("p99", "p99"), ("max", "highest")):
            if times:
                value = statistics.median(getattr(of, figure) for of in times)
                self.results.add(f"meanwhile {row}", "µs", QUIET, target, turn, value)

    def _start_filled(
        self, stack: ExitStack, stub: Server, sizes: Sequence[int], copies: Path | None = None
    ) -> list[Server]:
        """Proxies whose caches were written ahead, on copies of them if there is a folder for
        these; without those that fail."""
        started: list[Server] = []
        for size in sizes:
            name = entries_name(size)
            with self._attempt(f"start {name}"):
                folder = self._journal(size)
                if copies:
                    folder = shutil.copytree(folder, copies / folder.name)
                server = stack.enter_context(servers.ours(stub, folder, name, entries=size))
                client.check(server.port, SMALL, size - 1, "HIT")
                started.append(server)
                # What the disk takes is its own: the system may have let go of the file.
                (folder / "cache.jsonl").read_bytes()
        return started

    def _journal(self, size: int) -> Path:
        """A folder with a cache of so many entries, made when it is first wanted."""
        folder = self._work / f"entries-{size}"
        if size not in self._written:
            _say(f"writing a journal of {size:,} entries")
            entries.write_journal(folder, SMALL, size)
            self._written.add(size)
        return folder

    def _load(self, case: Case, targets: Sequence[Server], turn: int) -> None:
        """Has wrk load each target."""
        assert self._wrk
        _say(f"round {turn + 1}: {case.name}")
        for server in _rotated(targets, turn):
            with self._attempt(f"{case.name} {server.name}"):
                unused, began = next(self._unused), server.cpu()
                figures = load(self._wrk, case, server, turn, unused, self._seconds)
                for name, unit, value in case.rows(figures):
                    self._add(name, unit, case.reference, server, turn, value)
                if case.is_rate:
                    cpu = (server.cpu() - began) / figures.requests * 1e6
                    self._add(f"{case.name} cpu", "µs", case.reference, server, turn, cpu)

    def _stream(
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
        _say(f"round {turn + 1}: {name} {target or server.name}")
        start = next(self._unused) if start is None else start
        command = [sys.executable, "-m", "benchmarks.streams", str(server.port),
                   "--streams", str(streams), "--events", str(events), "--start", str(start),
                   *options]  # fmt: skip
        with self._attempt(f"{name} {target or server.name}"):
            began = server.cpu()
            done = subprocess.run(
                command, cwd=servers.ROOT, capture_output=True, text=True, timeout=600
            )
            if done.returncode:
                raise ValueError(done.stderr.strip())
            found = orjson.loads(done.stdout)
            value = found["rate" if unit == "/s" else "first_ms"]
            if target is not None:
                self._add(name, unit, reference, server, turn, value, target)
            if target is not None and unit == "/s":
                cpu = (server.cpu() - began) / (streams * events * found["times"]) * 1e6
                self._add(f"{name} cpu", "µs", reference, server, turn, cpu, target)

    def _add(
        self,
        name: str,
        unit: str,
        reference: str,
        server: Server,
        turn: int,
        value: float,
        target: str = "",
    ) -> None:
        if self._is_wanted(name.split()[0]):
            self.results.add(name, unit, reference, target or server.name, turn, value)

    def _wants(self, case: Case) -> bool:
        return self._wrk is not None and self._is_wanted(case.name)

    def _start(self, stack: ExitStack, context: AbstractContextManager[Server]) -> Server | None:
        with self._attempt("start"):
            return stack.enter_context(context)
        return None

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        try:
            yield
        except FAILURES as e:
            self.results.failures.append(f"{what}: {e}")
            _say(f"failed: {what}: {e}")


def _rotated(targets: Sequence[Server], turn: int) -> list[Server]:
    """Another one is first in every round."""
    start = turn % len(targets) if targets else 0
    return [*targets[start:], *targets[:start]]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
