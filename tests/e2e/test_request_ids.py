"""Request ids and the log in JSON, from the client to upstream."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import BODIES, GENERATE, post
from tests.simulator import Simulator

OURS = r"[0-9a-f]{8}-[0-9a-f]{10}"


@pytest.fixture
def logging(simulator: Simulator, start_proxy: StartProxy) -> Proxy:
    return start_proxy(simulator.url, "--log-format", "json")


def lines(proxy: Proxy) -> list[Any]:
    """What was logged of requests; all that is logged is JSON."""
    found = [json.loads(line) for line in proxy.log.splitlines() if line.startswith("{")]
    return [line for line in found if "outcome" in line]


def test_ids_and_log(simulator: Simulator, logging: Proxy) -> None:
    """An id is the client's, or ours, in the answer and in the log; upstream is shown one of its
    own for each fetch. Each request has a line in JSON."""
    body, stream = BODIES[GENERATE], {**BODIES[GENERATE], "text": "s", "stream": True}
    answers = []
    for asked, given in ((body, "mine-1"), (body, "mine-1"), (body, 'odd "id"'), (stream, ""),
                         (stream, "s-2")):  # fmt: skip
        answers.append(post(logging, GENERATE, asked, headers={"X-Request-Id": given}))
    no_store = {"Cache-Control": "no-store", "X-Request-Id": "mine-3"}
    answers.append(post(logging, GENERATE, body, headers=no_store))
    other = requests.get(f"{logging.url}/v1/models?key=s3cret", timeout=30)
    assert "X-Request-Id" not in other.headers
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert ids[:2] == ["mine-1", "mine-1"]
    assert re.fullmatch(OURS, ids[2])
    assert re.fullmatch(OURS, ids[3])
    assert ids[4:] == ["s-2", "mine-3"]
    sent = [
        {name.lower(): value for name, value in dict(r.headers).items()}.get("x-request-id")
        for r in simulator.received
        if r.method == "POST" and r.path == GENERATE
    ]
    named = [name for name in sent if name]
    assert re.fullmatch(r"mine-1\.[0-9a-f]{8}", named[0])
    assert re.fullmatch(OURS + r"\.[0-9a-f]{8}", named[1])
    assert named[2] == "mine-3"  # it is passed on as it came
    until(lambda: len(lines(logging)) == 7)
    told = lines(logging)
    assert [line["id"] for line in told[:6]] == ids
    outcomes = ["miss", "hit", "hit", "miss", "hit", "bypass", "bypass"]
    assert [line["outcome"] for line in told] == outcomes
    assert [line["status"] for line in told] == [200] * 7
    assert [line["bytes"] for line in told[:3]] == [len(answer.content) for answer in answers[:3]]
    assert all(line["bytes"] > len(answers[3].content) for line in told[3:5])
    assert [line["reason"] for line in told[5:]] == ["no-store", "route"]
    assert told[0]["key"] == told[1]["key"]
    assert told[6]["path"] == "/v1/models"
    assert "s3cret" not in logging.log
    noise = [line for line in logging.log.splitlines() if line and not line.startswith("{")]
    assert not [line for line in noise if "[Cache" in line]


def test_an_id_is_no_key(simulator: Simulator, proxy: Proxy) -> None:
    """Calls that differ in their id alone are one call."""
    kinds = [
        post(proxy, GENERATE, BODIES[GENERATE], headers={"X-Request-Id": name}).headers["X-Cache"]
        for name in ("a", "b", "c")
    ]
    assert kinds == ["MISS", "HIT", "HIT"]
