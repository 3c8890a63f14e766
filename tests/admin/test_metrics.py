"""What Prometheus is told."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sglang_cached_addon.admin import metrics
from sglang_cached_addon.core.outcome import Kind, Outcome, Saved
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.timings import Timings
from sglang_cached_addon.upstream import Health
from tests.tables import each
from tests.test_assembly import opened

TIMES = (("chat", Kind.HIT, 0.0002), ("generate", Kind.HIT, 0.003), ("chat", Kind.MISS, 700.0))


def told(folder: Path, health: Health = Health.UP, **options: str) -> str:
    """The metrics of a cache that something has happened to."""

    async def run() -> bytes:
        with opened(folder, **options) as parts:
            timings, counters = Timings(), parts.exchange.counters
            for dialect, kind, seconds in TIMES:
                timings.of(dialect, kind).add(seconds)
            timings.first_event.add(0.04)
            counters.hit(Saved(2, 30, 1.5))
            counters.add(Outcome(Kind.BYPASS, reason=Reason.BEAM))
            counters.add(Outcome(Kind.MISS, 0, 1, Reason.STATUS, 503))
            counters.upstream_answers[503] += 1
            counters.upstream_errors[Reason.CUT] += 1
            return metrics.text(parts, timings, health)

    return asyncio.run(run()).decode()


def values(text: str) -> dict[str, float]:
    """The samples of ours by name and labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = sample.name.removeprefix("sglang_cached_")
            assert found.setdefault(f"{name}{{{labels}}}", sample.value) == sample.value
    return found


def test_values(tmp_path: Path) -> None:
    """Each counter is there, under its name; the buckets of a histogram add up."""
    found = values(told(tmp_path))
    expected = {
        "requests_total{dialect=chat,outcome=hit}": 1,
        "requests_total{dialect=chat,outcome=miss}": 1,
        "requests_total{dialect=generate,outcome=hit}": 1,
        "request_duration_seconds_bucket{le=0.0001,outcome=hit}": 0,
        "request_duration_seconds_bucket{le=0.00025,outcome=hit}": 1,
        "request_duration_seconds_bucket{le=0.005,outcome=hit}": 2,
        "request_duration_seconds_bucket{le=250.0,outcome=miss}": 0,
        "request_duration_seconds_bucket{le=+Inf,outcome=miss}": 1,
        "request_duration_seconds_count{outcome=hit}": 2,
        "request_duration_seconds_sum{outcome=miss}": 700,
        "first_event_seconds_count{}": 1,
        "bypasses_total{reason=beam}": 1,
        "not_stored_total{reason=status}": 1,
        "samples_from_cache_total{}": 2,
        "saved_tokens_total{}": 30,
        "saved_upstream_seconds_total{}": 1.5,
        "upstream_requests_total{code=503}": 1,
        "upstream_errors_total{reason=cut}": 1,
        "upstream_up{}": 1,
        "pools{}": 0,
        "runs{}": 0,
        "journal_errors_total{}": 0,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["process_resident_memory_bytes{}"] > 1 << 20


def test_docs(tmp_path: Path) -> None:
    """Each metric is documented, and no other."""
    text = told(tmp_path, sglang_store="redis://127.0.0.1:1/0")
    declared = set(re.findall(r"^# TYPE sglang_cached_(\w+)", text, re.M))
    docs = (Path(__file__).parent.parent.parent / "docs/http.md").read_text()
    (table,) = re.findall(r"<!-- start metrics -->(.*?)<!-- end -->", docs, re.S)
    firsts = " ".join(row.split("|")[1] for row in table.strip().splitlines()[2:])
    assert set(re.findall(r"`(\w+)`", firsts)) == declared | {"runs"}


@each(("health", "up"), [(Health.UP, 1), (Health.DOWN, 0), (Health.UNKNOWN, None)])
def test_upstream(health: Health, up: int | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is not known of the server is not told."""
    assert values(told(tmp_path_factory.mktemp("x"), health)).get("upstream_up{}") == up


def test_a_shared_store(tmp_path: Path) -> None:
    """A shared store has its own metrics, and its URL is in none."""
    text = told(tmp_path, sglang_store="redis://:secret@127.0.0.1:1/0")
    assert values(text)["shared_store_up{}"] == 0
    assert "127.0.0.1" not in text
    assert str(tmp_path) not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_conventions(tmp_path: Path) -> None:
    """Prometheus's own checker finds nothing to say of names, units and help."""
    text = told(tmp_path, sglang_store="redis://127.0.0.1:1/0")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
