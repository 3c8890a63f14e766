"""What matters most, in every way in which people start the cache: `start`, with and without the
fast lane, `start --web`, `mitmdump -s` and `mitmweb -s`."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.conftest import Mitmproxy, Proxy, cache_status, until
from tests.e2e import test_runs as runs
from tests.e2e.calls import BODIES, DONE, Stream, post, sampled, sampling, stream, texts
from tests.e2e.conftest import WAYS, StartFront
from tests.simulator import Fault, Profile, Simulator, running


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with running(Profile(tokens_per_second=100.0)) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def started(upstream: Simulator, start_way: StartFront) -> Proxy:
    return start_way(upstream.url)


@pytest.fixture
def front(upstream: Simulator, started: Proxy) -> Proxy:
    """A proxy with nothing stored, before an upstream that was asked nothing."""
    requests.post(f"{started.url}/cache/clear", timeout=30).raise_for_status()
    upstream.received.clear()
    return started


def test_clients_come_after_the_cache(upstream: Simulator, started: Proxy) -> None:
    """mitmproxy lets nobody in before the cache is open, and says where that is."""
    if isinstance(started, Mitmproxy):
        assert started.banner.index("sglang-cached: http") < started.banner.index("listening at")
        assert upstream.url in started.banner
        assert "cache.jsonl" in started.banner


@pytest.mark.parametrize("path", BODIES)
def test_json(path: str, upstream: Simulator, front: Proxy) -> None:
    """Answers are stored, and pools topped up."""
    one = post(front, path, sampling(path))
    assert (one.status_code, one.headers["X-Cache"]) == (200, "MISS")
    for n, kind in ((1, "HIT"), (3, "PARTIAL"), (2, "HIT")):
        answer = post(front, path, sampling(path, n))
        assert (answer.status_code, answer.headers["X-Cache"]) == (200, kind)
    asked = [body.get("n") or body["sampling_params"].get("n") for body in sampled(upstream)]
    assert asked == [1, 2]


@pytest.mark.parametrize("path", BODIES)
def test_stream(path: str, upstream: Simulator, front: Proxy) -> None:
    """Streams are stored."""
    head, first = stream(front, path, sampling(path))
    assert head["x-cache"] == "MISS"
    head, again = stream(front, path, sampling(path))
    assert head["x-cache"] == "HIT"
    assert texts(path, again) == texts(path, first)
    assert post(front, path, sampling(path)).headers["X-Cache"] == "HIT"
    assert len(sampled(upstream)) == 1


def test_runs(front: Proxy) -> None:
    """The k-th call of a run gets the k-th sample, in JSON and as a stream."""
    for path in BODIES:
        for form in ({}, {"stream": True}):
            asked = runs.body(path, f"{path} {form}", **form)
            first = [runs.texts(runs.draw(front, "a", path, asked)) for _ in range(3)]
            assert len({str(texts) for texts in first}) == 3, (path, form)
            front.stats()
            again = [runs.draw(front, "b", path, asked) for _ in range(3)]
            assert [runs.texts(answer) for answer in again] == first, (path, form)
            assert {answer.headers["X-Cache"] for answer in again} == {"HIT"}, (path, form)


def test_stream_comes_as_it_is_made(front: Proxy, upstream: Simulator) -> None:
    """The first words of a stream are there before the last are made."""
    body = {**sampling("/generate", tokens=30), "stream": True}
    upstream.faults.append(Fault.PAUSE)
    with closing(Stream(front, "/generate", body)) as client:
        chunks = client.begin().chunks()
        assert next(chunks).startswith(b"data: {")
        assert upstream.running == 1
        until(lambda: upstream.waiting)
        upstream.release()
        assert list(chunks)[-1] == DONE


def test_equal_calls_are_one(front: Proxy, upstream: Simulator) -> None:
    """Equal calls at the same time are one call for upstream."""
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(post, front, "/generate", sampling("/generate")) for _ in range(6)]
        kinds = {future.result().headers["X-Cache"] for future in asked}
    assert kinds <= {"MISS", "COLLAPSED", "HIT"}
    assert len(sampled(upstream)) == 1


def test_other_routes(front: Proxy) -> None:
    """What is not cached passes, and the proxy's own routes answer."""
    assert requests.get(f"{front.url}/v1/models", timeout=30).json()["object"] == "list"
    assert requests.get(f"{front.url}/health", timeout=30).status_code == 200
    assert requests.get(f"{front.url}/cache", timeout=30).text.startswith("<!doctype html>")
    assert front.stats()["num_keys"] == 0
    stray = post(front, "/generate", {"text": "one two", "sampling_params": {"n": 0}})
    assert cache_status(stray.headers) == "sglang-cached; fwd=bypass; detail=malformed"


def test_a_rule_of_the_client(front: Proxy, upstream: Simulator) -> None:
    """`only-if-cached` is not asked of upstream."""
    headers = {"Cache-Control": "only-if-cached"}
    for path in BODIES:
        assert post(front, path, sampling(path), headers=headers).status_code == 504
    assert sampled(upstream) == []


def test_without_upstream(front: Proxy, upstream: Simulator) -> None:
    """While upstream is down, a miss is answered with an error in JSON, on a connection that lives,
    and what is stored is given. When it is back, it is so for that connection, too."""
    path = "/v1/chat/completions"
    stored = post(front, path, sampling(path)).json()
    assert post(front, path, sampling(path)).headers["X-Cache"] == "HIT"
    post(front, "/generate", {**sampling("/generate"), "text": "who may ask"})
    # Given before it is stored, which only upstream's word on its model makes it.
    until(lambda: front.stats()["total_responses"])
    upstream.down()
    try:
        for route, body in (("/v1/models", None), ("/generate", BODIES["/generate"])) * 2:
            method = "POST" if body else "GET"
            answer = front.session.request(method, front.url + route, json=body, timeout=30)
            assert answer.status_code == 502
            assert answer.headers["content-type"] == "application/json"
            assert front.url not in answer.text
            assert answer.json()["error"]["message"]
            assert "close" not in answer.headers.get("connection", "")
            if body:
                assert upstream.url in answer.json()["error"]["message"]
                told = cache_status(answer.headers)
                assert told.endswith("fwd-status=502; detail=unreachable")
        health = requests.get(f"{front.url}/health", timeout=30).json()
        assert health["upstream"]["state"] == "down"
        hit = post(front, path, sampling(path))
        assert (hit.status_code, hit.headers["X-Cache"]) == (200, "HIT")
        assert hit.json()["choices"] == stored["choices"]
    finally:
        upstream.up()
    assert front.session.get(f"{front.url}/v1/models", timeout=30).status_code == 200
    numbers = itertools.count()

    def is_as_before() -> bool:  # it has noticed that upstream was restarted
        body = {**sampling("/generate"), "text": f"after that {next(numbers)}"}
        return [post(front, "/generate", body).headers["X-Cache"] for _ in "ab"] == ["MISS", "HIT"]

    until(is_as_before)


@pytest.mark.parametrize("place", ["0", "len(chain)"], ids=["first", "last"])
def test_wherever_it_stands(place: str, upstream: Simulator, tmp_path: Path) -> None:
    """Streams are stored wherever in mitmproxy's chain the addon stands."""
    (tmp_path / "move.py").write_text(
        "from mitmproxy import ctx\n"
        "def running():\n"
        "    chain, loader = ctx.master.addons.chain, ctx.master.addons.get('scriptloader')\n"
        "    chain.remove(loader)\n"
        f"    chain.insert({place}, loader)\n"
    )
    proxy = WAYS["mitmdump"](upstream.url, tmp_path, "-s", "move.py")
    try:
        proxy.wait_until_ready()
        kinds = [stream(proxy, path, sampling(path))[0]["x-cache"] for path in (*BODIES, *BODIES)]
        assert kinds == ["MISS"] * 3 + ["HIT"] * 3
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.log
    finally:
        proxy.stop(signal.SIGKILL)
