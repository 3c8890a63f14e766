"""One run: rounds of all cases, each round with servers of its own.

So start-up, memory and luck with either are measured as often as the rest. What fails is
noted, and the rest goes on; whatever happens, the servers of a round end with it.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import alone, client, entries, servers
from benchmarks.bounds import entries as entries_name
from benchmarks.calls import SMALL, generate
from benchmarks.cases import (
    COMPACT,
    COMPACT_ENTRIES,
    COSTS,
    DRAWS,
    REPLAYS,
    RUN,
    SPREAD_COSTS,
    STREAMS,
    TARGETS,
    scale,
    spread,
)
from benchmarks.measuring import Measuring, rotated
from benchmarks.servers import (
    COMPACTING,
    DIRECT,
    EARLY,
    IN_RUNS,
    JSON,
    LATE,
    MITMDUMP,
    NGINX,
    OURS,
    OUTSIDE,
    RELAYED,
    REPLAYED,
    SETTLED,
    UNSTORED,
    Server,
)

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
        self, measuring: Measuring, sizes: Sizes, *, nginx_path: str | None, work: Path
    ) -> None:
        self._measuring = measuring
        self._sizes = sizes
        self._nginx = nginx_path
        self._seconds = measuring.seconds
        self._is_wanted = measuring.is_wanted
        self._work = work

    def round(self, turn: int) -> None:
        """Measures everything that is wanted once."""
        with ExitStack() as stack:
            stub = self._measuring.start(stack, servers.direct())
            if stub:
                self._targets(turn, stub)
                self._replays(turn, stub)
                self._runs(turn, stub)
                self._spread(turn, stub)
                self._scale(turn, stub)
                self._compact(turn, stub)
        alone.store(self._measuring, turn, self._sizes.many)
        alone.attacked(self._measuring, turn, self._work)

    def _targets(self, turn: int, stub: Server) -> None:
        """All four, side by side, with the same load."""
        cases = [case for case in TARGETS if self._measuring.wants(case)]
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
            started = [
                server for start in starts if (server := self._measuring.start(stack, start))
            ]
            for server in started:
                self._measuring.add("start", "s", MITMDUMP, server, turn, server.start_seconds)
            for case in cases:
                self._measuring.load(case, [stub, *started], turn)
            relays = [stub, *(server for server in started if server.name != NGINX)]
            if "streams-64" in others:
                events = EVENTS_PER_SECOND * self._seconds
                for server in rotated(relays, turn):
                    self._measuring.stream("streams-64", "/s", DIRECT, server, turn, 64, events)
                    if server.name == OURS:
                        self._measuring.stream(
                            "streams-64", "/s", DIRECT, server, turn, 64, events,
                            "--unstored", target=UNSTORED,
                        )  # fmt: skip
            if "first-event" in others:
                for server in rotated(relays, turn):
                    self._measuring.stream(
                        "first-event", "ms", DIRECT, server, turn, 1, 3,
                        "--times", str(50 * self._seconds),
                    )  # fmt: skip
            for server in (stub, *started):
                with self._measuring.attempt(f"memory {server.name}"):
                    peak = server.memory("VmHWM")
                    self._measuring.add("memory", "MiB", MITMDUMP, server, turn, peak)

    def _replays(self, turn: int, stub: Server) -> None:
        """Streams through our proxy: relayed and recorded, replayed, and let go of."""
        wanted = [name for name in REPLAYS if self._is_wanted(name)]
        if not wanted:
            return
        with ExitStack() as stack:
            server = self._measuring.start(
                stack, servers.ours(stub, self._work / f"replays-{turn}")
            )
            if server is None:
                return
            if "deltas-64" in wanted:
                # As fast as the proxy takes them; and then from the store, over and over.
                load = ("--interval-ms", "0.5", "--same")
                row = ("deltas-64", "/s", RELAYED, server, turn, 64, 400)
                start = self._measuring.new_numbers()
                self._measuring.stream(*row, *load, target=RELAYED, start=start)
                again = ("--hits", "--times", str(10 * self._seconds))
                self._measuring.stream(*row, *load, *again, target=REPLAYED, start=start)
            if "first-replay" in wanted:
                once = ("first-replay", "ms", JSON, server, turn, 1, 100, "--same")
                start = self._measuring.new_numbers()
                self._measuring.stream(*once, "--interval-ms", "0", target=None, start=start)
                hits = ("--hits", "--interval-ms", "0", "--times", str(300 * self._seconds))
                self._measuring.stream(*once, *hits, target=REPLAYED, start=start)
                self._measuring.stream(*once, *hits, "--json", target=JSON, start=start)
            if "streams-memory" in wanted:
                # Recorded to their ends, and then not stored: what stays would be a leak.
                memory = ("--interval-ms", "0", "--same", "--no-usage")
                start = self._measuring.new_numbers()
                for target in (EARLY, LATE):
                    of = ("streams-memory", "MiB", EARLY, server, turn, 64, 100)
                    self._measuring.stream(*of, *memory, "--times", "157", target=None, start=start)
                    resident = server.memory("VmRSS")
                    self._measuring.add(
                        "streams-memory", "MiB", EARLY, server, turn, resident, target
                    )

    def _runs(self, turn: int, stub: Server) -> None:
        """Hits in runs and outside of them, of one pool."""
        if not self._measuring.wants(RUN):
            return
        with ExitStack() as stack:
            start = servers.ours(stub, self._work / f"runs-{turn}", OUTSIDE)
            if server := self._measuring.start(stack, start):
                with self._measuring.attempt(RUN.name):
                    client.fill(server.port, generate(100, DRAWS), 0)
                    in_runs = replace(server, name=IN_RUNS, draws=DRAWS)
                    self._measuring.load(RUN, [replace(server, entries=1), in_runs], turn)

    def _spread(self, turn: int, stub: Server) -> None:
        """Hits at random over few and over many entries, and what those entries cost."""
        sizes = (self._sizes.few, self._sizes.many)
        reference = entries_name(sizes[0])
        cases = [case for case in spread(reference) if self._measuring.wants(case)]
        if not cases and not any(map(self._is_wanted, SPREAD_COSTS)):
            return
        with ExitStack() as stack:
            started = self._measuring.start_filled(stack, stub, sizes)
            for server in started:
                costs = (("s", server.start_seconds), ("MiB", server.memory("VmRSS")))
                for name, (unit, value) in zip(SPREAD_COSTS, costs, strict=True):
                    self._measuring.add(name, unit, reference, server, turn, value)
            for case in cases:
                self._measuring.load(case, started, turn)

    def _scale(self, turn: int, stub: Server) -> None:
        """Hits and misses with a small and with a large cache."""
        sizes = (self._sizes.little, self._sizes.large)
        reference = entries_name(sizes[0])
        cases = [case for case in scale(reference) if self._measuring.wants(case)]
        if not cases:
            return
        with ExitStack() as stack:
            # Misses write to it.
            copies = Path(stack.enter_context(TemporaryDirectory(dir=self._work)))
            started = self._measuring.start_filled(stack, stub, sizes, copies)
            for case in cases:
                self._measuring.load(case, started, turn)

    def _compact(self, turn: int, stub: Server) -> None:
        """Hits while a journal of which two thirds are dead is compacted, and afterwards."""
        if not self._measuring.wants(COMPACT):
            return
        with self._measuring.attempt("compact"), TemporaryDirectory(dir=self._work) as name:
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
                    self._measuring.load(COMPACT, [replace(server, name=target)], turn)
                    if is_compacting and not aside.exists():
                        raise ValueError("was compacted before that was measured")
