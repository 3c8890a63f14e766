"""Greedy calls that are answered by what is stored for others of their family, end to end."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, cache_status, until
from tests.e2e.calls import CHAT, COMPLETIONS, GENERATE, post, sampled
from tests.e2e.test_redis import shared, unless_late, until_state
from tests.e2e.test_samples import shape
from tests.e2e.test_sglang import limited, whole
from tests.redis import RedisServer, needs_redis
from tests.simulator import Simulator

CUT = 'sglang-cached; hit; detail="cut from %d tokens"'


def asked(proxy: Proxy, simulator: Simulator, path: str, body: Any) -> str:
    """What `Cache-Status` says of the answer to a call, which has to be what upstream says."""
    answer = post(proxy, path, body)
    proxy.stats()  # by then it is stored
    direct = requests.post(simulator.url + path, json=body, timeout=30)
    assert whole(path, answer) == whole(path, direct)
    assert (
        answer.headers["X-Cache"]
        == cache_status(answer.headers).split("; ")[1].replace("fwd=", "").upper()
    )
    return cache_status(answer.headers)


def test_seed(simulator: Simulator, proxy: Proxy) -> None:
    """After a call for 100 tokens, one for 10 is a hit, in JSON and as a stream."""
    long, short = (limited(GENERATE, "once", limit, scores=False) for limit in (100, 10))
    assert asked(proxy, simulator, GENERATE, long) == "sglang-cached; fwd=miss; stored"
    assert asked(proxy, simulator, GENERATE, short) == CUT % 100
    assert asked(proxy, simulator, GENERATE, short) == "sglang-cached; hit"
    for kind in ("HIT", "HIT"):  # a run gives it the first sample, as any other
        again = post(proxy, f"/run/one{GENERATE}", limited(GENERATE, "once", 11, scores=False))
        assert (again.headers["X-Cache"], again.headers["X-Cache-Sample"]) == (kind, "0")
    stream = {**limited(GENERATE, "once", 20, scores=False), "stream": True}
    assert asked(proxy, simulator, GENERATE, stream) == CUT % 100
    assert proxy.stats()["num_keys"] == proxy.stats()["total_responses"] == 4
    assert "(cut from 100 tokens)" in proxy.log


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS, CHAT])
def test_streams(path: str, simulator: Simulator, proxy: Proxy) -> None:
    """A recorded stream is cut at its events, for a stream and for JSON; and its client sees no
    more than upstream shows without us."""
    stream = {**limited(path, "once", 40, scores=False), "stream": True}
    answer = post(proxy, path, stream)
    assert shape(answer) == shape(requests.post(simulator.url + path, json=stream, timeout=30))
    proxy.stats()
    simulator.received.clear()
    body = limited(path, "once", 7, scores=False)
    for more in ({"stream": True}, {"stream": False}):
        limit = {"max_tokens": 7 + len(more)} if path != GENERATE else {}
        answer = post(proxy, path, {**body, **more, **limit})
        direct = requests.post(simulator.url + path, json={**body, **more, **limit}, timeout=30)
        assert shape(answer) == shape(direct)
        assert answer.headers["X-Cache"] == "HIT"
    paths = [received.path for received in simulator.received]
    assert paths.count(path) == 2  # our own, for comparison
    assert "/detokenize" not in paths


@pytest.mark.one_way
def test_restart(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """The next process knows the families of what is in the folder, also without upstream."""
    stream = {**limited(CHAT, "once", 40, scores=False), "stream": True}
    first = start_proxy(simulator.url)
    post(first, CHAT, stream)
    post(first, GENERATE, limited(GENERATE, "once", 40, scores=False))
    assert first.stop() == 0
    second = start_proxy(simulator.url, "--mode", "offline")
    body = limited(CHAT, "once", 8, scores=False)
    direct = requests.post(simulator.url + CHAT, json=body, timeout=30)
    simulator.received.clear()
    answer = post(second, CHAT, body)
    assert (cache_status(answer.headers), whole(CHAT, answer)) == (CUT % 40, whole(CHAT, direct))
    assert post(second, GENERATE, limited(GENERATE, "once", 8, scores=False)).status_code == 504
    assert not sampled(simulator)
    assert second.stop() == 0
    third = start_proxy(simulator.url)
    assert asked(third, simulator, GENERATE, limited(GENERATE, "once", 8, scores=False)) == CUT % 40
    assert third.stop() == 0  # then all is written
    lines = (tmp_path / "cache" / "cache.jsonl").read_text().splitlines()
    assert [json.loads(line)["dialect"] for line in lines].count("greedy-family") == 3


@pytest.mark.one_way
def test_turned_off(simulator: Simulator, start_proxy: StartProxy) -> None:
    """With `--no-greedy-reuse`, each limit is fetched."""
    proxy = start_proxy(simulator.url, "--no-greedy-reuse")
    for limit in (40, 8):
        body = limited(GENERATE, "once", limit, scores=False)
        assert asked(proxy, simulator, GENERATE, body) == "sglang-cached; fwd=miss; stored"
    simulator.received.clear()
    post(proxy, CHAT, {**limited(CHAT, "once", 9, scores=False), "stream": True})
    (sent,) = sampled(simulator)
    assert sent["stream_options"] == {"include_usage": True}


@needs_redis
@pytest.mark.one_way
def test_shared(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """What one proxy has stored on Redis, another one cuts."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    try:
        one, other = (
            start_proxy(simulator.url, "--store", server.url, cache=tmp_path / name)
            for name in ("one", "other")
        )
        until_state("up", [one, other])
        for text, limit in (("twice", 39), ("once", 40)):
            long = limited(GENERATE, text, limit, scores=False)
            assert asked(one, simulator, GENERATE, long) == "sglang-cached; fwd=miss; stored"
        assert until(lambda: not shared(one)["pending"])
        limits = iter((8, 9, 11))

        def check() -> None:
            short = limited(GENERATE, "once", next(limits), scores=False)
            assert asked(other, simulator, GENERATE, short) == CUT % 40

        unless_late([one, other], check)
        one.stop(signal.SIGKILL)
    finally:
        server.stop()
