"""What the proxy has counted, as Prometheus reads it: `/cache/metrics`.

Reads the counters that there are anyway when somebody asks, so that no call pays for it. Knows
nothing of HTTP. Imported for the first who asks: the library takes some 40 ms to load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from sglang_cached_addon import __version__
from sglang_cached_addon.assembly import Parts
from sglang_cached_addon.core.timings import BOUNDS, Histogram, Timings
from sglang_cached_addon.service.runs import Runs
from sglang_cached_addon.upstream import Health

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""That of Prometheus's text format, which all its releases read."""


def text(parts: Parts, timings: Timings, health: Health) -> bytes:
    """All metrics in Prometheus's text format."""

    class Ours(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _of_calls(parts, timings)
            yield from _of_upstream(parts, health)
            yield from _of_store(parts)
            yield from _of_process(timings)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Ours())
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def _of_calls(parts: Parts, timings: Timings) -> Iterator[Metric]:
    counters, flights = parts.exchange.counters, parts.service.flights
    requests: dict[tuple[str, ...], float] = {}
    by_outcome: dict[tuple[str, ...], list[Histogram]] = {}
    for (dialect, kind), histogram in timings.answers.items():
        requests[dialect, kind.value] = sum(histogram.counts)
        by_outcome.setdefault((kind.value,), []).append(histogram)
    yield _counter("requests", "Requests that were answered.", requests, ("dialect", "outcome"))
    yield _histogram(
        "request_duration_seconds",
        "From a request to the end of its answer.",
        by_outcome,
        ("outcome",),
    )
    yield _histogram(
        "first_event_seconds",
        "From a request to the first event of its stream.",
        {(): [timings.first_event]},
    )
    yield _counter("bypasses", "Requests not looked up.", _by(counters.bypasses), ("reason",))
    yield _counter(
        "not_stored", "Answers that were not stored.", _by(counters.not_stored), ("reason",)
    )
    for name, what, value in (
        ("samples_from_cache", "Samples of answers that were not generated.",
         counters.samples_from_cache),
        ("samples_from_upstream", "Samples that were generated.", counters.samples_from_upstream),
        ("saved_tokens", "Completion tokens that were not generated.", counters.tokens_saved),
        ("saved_upstream_seconds", "What the server would have taken for hits, in seconds.",
         counters.upstream_seconds_saved),
    ):  # fmt: skip
        yield _counter(name, what, {(): value})
    for name, what, value in (
        ("fetches_in_flight", "Calls to the server under way.", len(flights)),
        ("streams_in_flight", "Those that are streams.", flights.streams),
        ("followers", "Requests that wait for the fetch of another.", flights.waiting),
        ("unconfirmed_answers", "Answers that are not yet stored or dropped.", flights.unconfirmed),
    ):
        yield _gauge(name, what, value)


def _of_upstream(parts: Parts, health: Health) -> Iterator[Metric]:
    counters = parts.exchange.counters
    yield _counter(
        "upstream_requests",
        "Answers of the server to calls for what was short.",
        _by(counters.upstream_answers),
        ("code",),
    )
    yield _counter(
        "upstream_errors",
        "Such calls that came to no answer.",
        _by(counters.upstream_errors),
        ("reason",),
    )
    if health is not Health.UNKNOWN:
        yield _gauge("upstream_up", "Whether the server answers.", health is Health.UP)


def _of_store(parts: Parts) -> Iterator[Metric]:
    store, journal = parts.store, parts.store.journal
    yield _gauge("pools", "Entries that are stored.", store.index.entries)
    yield _gauge("stored_samples", "Samples that are stored.", store.index.samples)
    yield _gauge("memory_bytes", "Samples in memory.", store.memory.bytes)
    if isinstance(runs := parts.service.runs, Runs):
        yield _gauge("runs", "Runs that are known.", len(runs.log.runs))
    if journal:
        yield _gauge("file_bytes", "The size of the journal.", parts.file_bytes)
        yield _gauge("journal_pending_writes", "Lines that wait for the disk.", journal.pending)
        yield _gauge("journal_lag_seconds", "How long the oldest of them has waited.", journal.lag)
        yield _counter(
            "journal_dropped_writes", "Samples the disk did not take.", {(): journal.dropped}
        )
        yield _counter("journal_errors", "Writes that have failed.", {(): journal.errors})
    if shared := store.facts():
        yield _gauge("shared_store_up", "Whether it answers.", shared["state"] == "up")
        yield _gauge("shared_store_pending_writes", "Writes that wait for it.", shared["pending"])
        yield _counter(
            "shared_store_dropped_writes", "Writes it did not take.", {(): shared["not_shared"]}
        )


def _of_process(timings: Timings) -> Iterator[Metric]:
    yield _histogram(
        "event_loop_delay_seconds",
        "By how much the event loop is late.",
        {(): [timings.loop_delay]},
    )
    yield InfoMetricFamily("sglang_cached_build", "The release.", {"version": __version__})


def _by(counts: Counter[Any]) -> dict[tuple[str, ...], float]:
    return {(str(name),): count for name, count in counts.items()}


def _counter(
    name: str, what: str, values: Mapping[tuple[str, ...], float], labels: tuple[str, ...] = ()
) -> Metric:
    family = CounterMetricFamily(f"sglang_cached_{name}", what, labels=labels)
    for label, value in sorted(values.items()):
        family.add_metric(label, value)
    return family


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"sglang_cached_{name}", what, value)


def _histogram(
    name: str,
    what: str,
    values: Mapping[tuple[str, ...], Iterable[Histogram]],
    labels: tuple[str, ...] = (),
) -> Metric:
    family = HistogramMetricFamily(f"sglang_cached_{name}", what, labels=labels)
    for label, several in sorted(values.items()):
        below, buckets = 0, []
        counts = [sum(each) for each in zip(*(h.counts for h in several), strict=True)]
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(label, buckets, sum(h.sum for h in several))
    return family
