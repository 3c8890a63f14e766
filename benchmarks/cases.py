"""What is measured: a case is one kind of load on every target in turn.

Its rows are named after it. Before each measurement, requests show that the target does
what the case says; after it, those that count their hits and misses are asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import client, wrk
from benchmarks.calls import FOUR, LARGE, SMALL, Call
from benchmarks.servers import DIRECT, MITMDUMP, NGINX, OUTSIDE, SETTLED, Server


@dataclass(frozen=True, slots=True)
class Case:
    """A load that wrk makes: with one connection for latency, with 32 for the rate."""

    name: str
    call: Call
    reference: str
    """The target that the others are compared with."""
    is_rate: bool = False
    is_miss: bool = False

    @property
    def connections(self) -> int:
        return 32 if self.is_rate else 1

    def rows(self, figures: wrk.Figures) -> Iterator[tuple[str, str, float]]:
        """Names, units and values."""
        if self.is_rate:
            yield self.name, "/s", figures.rate
        else:
            yield f"{self.name} p50", "µs", figures.p50
            yield f"{self.name} p99", "µs", figures.p99


TARGETS = (
    Case("hit-small", SMALL, NGINX),
    Case("hit-small-rate", SMALL, NGINX, is_rate=True),
    Case("hit-16k", LARGE, NGINX),
    Case("hit-16k-rate", LARGE, NGINX, is_rate=True),
    Case("hit-n4", FOUR, MITMDUMP),
    Case("hit-n4-rate", FOUR, MITMDUMP, is_rate=True),
    Case("miss", SMALL, DIRECT, is_miss=True),
    Case("miss-rate", SMALL, DIRECT, is_rate=True, is_miss=True),
)
"""All four targets, one request over and over, or always another one."""
STREAMS = ("streams-64", "first-event")
REPLAYS = ("deltas-64", "first-replay", "streams-memory")
"""Streams through our proxy alone."""
COSTS = ("start", "memory")


def spread(reference: str) -> tuple[Case, ...]:
    """Hits at random over few and over many entries."""
    return (
        Case("spread", SMALL, reference),
        Case("spread-rate", SMALL, reference, is_rate=True),
    )


STORE = ("open", "entry", "get")
"""Opening a large journal, what its entries cost, and getting at them."""


RUN = Case("hit-run", SMALL, OUTSIDE, is_rate=True)
"""Hits in runs, each of which draws so many samples, and hits of no run."""

DRAWS = 1000


COMPACT = Case("compact", SMALL, SETTLED)
"""Hits at random while the journal is compacted, and afterwards."""

COMPACT_ENTRIES = 100_000
"""So many that it takes longer than a measurement."""


SPREAD_COSTS = ("spread-start", "spread-memory")


def scale(reference: str) -> tuple[Case, ...]:
    """Hits and misses with a small and with a large cache."""
    return (
        Case("scale-hit", SMALL, reference),
        Case("scale-miss", SMALL, reference, is_miss=True),
    )


def prepare(case: Case, server: Server, turn: int, unused: int) -> tuple[object, ...]:
    """Shows that the target does what the case says; gives the numbers that wrk shall send.

    `unused` is the first of many numbers that were never sent. Raises `NotAsClaimed`.
    """
    if not server.caches:
        client.check(server.port, case.call, unused, None)
        return ("count", unused + 1) if case.is_miss else ()
    if case.is_miss:
        client.check(server.port, case.call, unused, "MISS")
        client.fill(server.port, case.call, unused)
        return "count", unused + 1
    if server.draws:
        return "runs", server.draws, f"r{unused}"
    if server.entries:
        for number in (0, server.entries // 2, server.entries - 1):
            client.check(server.port, case.call, number, "HIT")
        return "random", server.entries, turn + 1
    client.fill(server.port, case.call, 0)
    return ()


def load(
    program: str, case: Case, server: Server, turn: int, unused: int, seconds: int
) -> wrk.Figures:
    """One measurement. Raises `NotAsClaimed` or `WrkError`."""
    numbers = prepare(case, server, turn, unused)
    before = client.counts(server.port) if server.counts else {}
    figures = wrk.run(program, server.port, case.call, numbers, case.connections, seconds)
    if server.counts:
        after = client.counts(server.port)
        name = "misses" if case.is_miss else "hits"
        if after[name] - before[name] < figures.requests:
            raise client.NotAsClaimed(f"not all of {figures.requests} were {name}: {after}")
    return figures
