"""`/cache/metrics`, as a real Prometheus reads it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.admin.test_metrics import values
from tests.conftest import Proxy, until
from tests.e2e.calls import BODIES, GENERATE, post
from tests.ports import free_port
from tests.simulator import Simulator

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
KINDS = ("hit", "partial", "miss", "collapsed", "bypass", "denied")


def scraped(proxy: Proxy) -> dict[str, float]:
    answer = requests.get(f"{proxy.url}/cache/metrics", timeout=30)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return values(answer.text)


def test_outcomes(simulator: Simulator, proxy: Proxy) -> None:
    """Each request is one of the outcomes, by the dialect that has answered it, in the lane and
    through the hooks; the proxy's own routes are none."""
    before = scraped(proxy)
    body = BODIES[GENERATE]
    more = {**body, "sampling_params": {**body.get("sampling_params", {}), "n": 2}}
    for asked in (body, body, more):
        assert post(proxy, GENERATE, asked).status_code == 200
    for _ in range(2):
        post(proxy, GENERATE, {**body, "text": "streamed", "stream": True})
        # A stream that is stored goes out in one go, one that is not wholly there yet in pieces.
        until(lambda: scraped(proxy)["stored_samples{}"] - before["stored_samples{}"] == 3)
    post(proxy, GENERATE, {**body, "text": "new"}, headers={"Cache-Control": "only-if-cached"})
    post(proxy, GENERATE, body, headers={"Cache-Control": "no-store"})
    requests.get(f"{proxy.url}/v1/models?x=secret", timeout=30)
    after = scraped(proxy)

    def risen(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    of = {k: risen(f"requests_total{{dialect=sglang-generate,outcome={k}}}") for k in KINDS}
    expected = {"hit": 2, "partial": 1, "miss": 2, "collapsed": 0, "bypass": 1, "denied": 1}
    assert of == expected
    assert risen("requests_total{dialect=other,outcome=bypass}") == 1
    for kind in KINDS:
        total = of[kind] + (kind == "bypass")
        assert risen(f"request_duration_seconds_count{{outcome={kind}}}") == total
    assert risen("first_event_seconds_count{}") == 2
    assert risen("upstream_requests_total{code=200}") == 3
    assert not any("secret" in name for name in after)


@pytest.fixture
def prometheus(proxy: Proxy, tmp_path: Path) -> Iterator[str]:
    """The URL of a Prometheus that scrapes the proxy."""
    port = free_port()
    config = tmp_path / "prometheus.yml"
    target = proxy.url.removeprefix("http://")
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs: [{job_name: c, metrics_path: /cache/metrics, "
        f"static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def asked(url: str, expression: str) -> list[Any]:
    """What Prometheus answers to an expression; nothing while it does not listen."""
    try:
        answer = requests.get(f"{url}/api/v1/query", {"query": expression}, timeout=30)
    except requests.ConnectionError:
        return []
    if answer.status_code == 503:  # it is starting
        return []
    assert answer.status_code == 200, (expression, answer.text)
    found: list[Any] = answer.json()["data"]["result"]
    return found


def expressions() -> list[str]:
    """All that the dashboard asks for."""
    panels = json.loads((EXAMPLES / "grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.one_way
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="apt-get install prometheus")
def test_prometheus(simulator: Simulator, proxy: Proxy, prometheus: str) -> None:
    """It takes what it is given, and understands what the dashboard asks it for."""
    post(proxy, GENERATE, BODIES[GENERATE])
    until(lambda: asked(prometheus, 'sglang_cached_requests_total{outcome="miss"}'), 60)
    (up,) = asked(prometheus, "up")
    assert up["value"][1] == "1"
    for expression in expressions():
        asked(prometheus, expression.replace("$__rate_interval", "1m"))


@pytest.mark.one_way
def test_the_dashboard(simulator: Simulator, proxy: Proxy) -> None:
    """It names only what exists."""
    post(proxy, GENERATE, BODIES[GENERATE])
    text = requests.get(f"{proxy.url}/cache/metrics", timeout=30).text
    declared = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    declared |= {f"{name}{end}" for name in declared for end in ("_bucket", "_sum", "_count")}
    named = {n for e in expressions() for n in re.findall(r"\b(?:sglang_cached|process)_\w+", e)}
    assert named
    assert named <= declared
