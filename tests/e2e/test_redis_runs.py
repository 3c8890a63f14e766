"""Runs of several proxies that share one Redis: their calls draw from one set of samples."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from itertools import count
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, until
from tests.e2e.calls import post
from tests.e2e.test_redis import Started, shared, unless_late, until_state
from tests.e2e.test_runs import APIS, GENERATE, body, calls, draw, leave, texts
from tests.redis import RedisServer, needs_redis
from tests.simulator import Fault, Profile, Simulator, running

pytestmark = [needs_redis, pytest.mark.shared]

numbers = count()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with running(Profile()) as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def started(upstream: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with Started(upstream, tmp_path_factory.mktemp("proxies")) as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def two(started: Started, server: RedisServer) -> list[Proxy]:
    """Two proxies, for all tests: each has runs and prompts of its own."""
    return started.some([server.url] * 2, "--poll-seconds", "3600")


@pytest.fixture(autouse=True)
def calm(upstream: Simulator, two: list[Proxy]) -> None:
    """Nothing is left of the test before."""
    upstream.faults.clear()
    upstream.release()
    until_state("up", two)


@pytest.fixture
def name() -> str:
    """The name of a new run."""
    return f"run-{next(numbers)}"


def steady(test: Callable[..., None]) -> Callable[..., None]:
    """A test that is done once more, in a new run, where Redis was late: see `unless_late`."""

    @wraps(test)
    def run(two: list[Proxy], name: str, **more: Any) -> None:
        unless_late(two, lambda: test(two=two, name=f"{name}-{next(numbers)}", **more))

    return run


def places(answers: Sequence[requests.Response]) -> list[str]:
    return [answer.headers.get("X-Cache-Sample", "") for answer in answers]


def told(proxy: Proxy, name: str) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{proxy.url}/cache/runs/{name}", timeout=30).json()
    return found


def alternately(two: list[Proxy], name: str, asked: Any, times: int) -> list[requests.Response]:
    return [draw(two[k % 2], name, asked=asked, path=GENERATE) for k in range(times)]


def until_stored(two: list[Proxy]) -> None:
    """Returns when nothing is on its way to Redis."""
    until(lambda: not any(shared(p)["pending"] or p.stats()["fetches_in_flight"] for p in two))


@steady
def test_one_set(upstream: Simulator, two: list[Proxy], name: str) -> None:
    """k calls at both proxies have k different samples, one by one and at once; a second run has
    the same ones in the same order, wherever it asks, and generates nothing."""
    for path in APIS:
        for form in ({}, {"stream": True}, {"n": 2}):
            run, asked = f"{name}-{next(numbers)}", body(path, f"{name} {path} {form}", **form)
            first = []
            for k in range(5):
                first.append(draw(two[k % 2], run, path, asked))
                if "stream" in form:  # its place is where it comes to be stored
                    until_stored(two)
            with ThreadPoolExecutor(8) as pool:
                more = list(
                    pool.map(lambda k: draw(two[k % 2], run, path, asked), range(8))  # noqa: B023
                )
            seen = [text for answer in (*first, *more) for text in texts(answer)]
            assert len(set(seen)) == len(seen) == 13 * form.get("n", 1), (path, form)
            until_stored(two)
            before = calls(upstream)
            again = [draw(two[(k // 2) % 2], f"{run}b", path, asked) for k in range(13)]
            assert {answer.headers["X-Cache"] for answer in again} == {"HIT"}, (path, form)
            replayed = [text for answer in again for text in texts(answer)]
            assert replayed[: 5 * form.get("n", 1)] == seen[: 5 * form.get("n", 1)], (path, form)
            assert set(replayed) == set(seen), (path, form)
            assert calls(upstream) == before, (path, form)
            if "n" not in form:
                assert places(again) == [str(k) for k in range(13)]


@steady
def test_what_people_see_and_change(two: list[Proxy], name: str) -> None:
    """All proxies tell the same of a run, and what one changes is so for all."""
    asked, (one, other) = body(GENERATE, name), two
    assert places(alternately(two, name, asked, 4)) == ["0", "1", "2", "3"]
    until(lambda: told(one, name)["calls"] == 4)
    found = told(one, name)
    assert found == told(other, name)
    assert (found["places"], found["reused"], found["generated"]) == (4, 0, 4)
    assert found["first"] < found["last"]
    for proxy in two:
        every = requests.get(f"{proxy.url}/cache/runs", timeout=30).json()["runs"]
        assert found in every

    def change(method: str, path: str = "", **more: Any) -> dict[str, Any]:
        url = f"{other.url}/cache/runs/{name}{path}"
        answer = requests.request(method, url, timeout=30, **more)
        assert answer.status_code == 200
        return dict(answer.json())

    assert change("POST", "/rewind")["places"] == 0
    assert places(alternately(two, name, asked, 3)) == ["0", "1", "2"]
    assert change("POST", json={"fresh": True})["fresh_since"]
    fresh = alternately(two, name, asked, 3)
    assert places(fresh) == ["4", "5", "6"]
    assert change("DELETE")["calls"] == 10
    for proxy in two:
        assert requests.get(f"{proxy.url}/cache/runs/{name}", timeout=30).status_code == 404
        names = requests.get(f"{proxy.url}/cache/runs", timeout=30).json()["runs"]
        assert name not in [run["name"] for run in names]
    assert places(alternately(two, name, asked, 7)) == [str(k) for k in range(7)]
    assert requests.get(f"{one.url}/cache/runs/never", timeout=30).status_code == 404


def begin(pool: ThreadPoolExecutor, proxy: Proxy, name: str, asked: Any) -> Any:
    """A call for one sample more than there is, which holds what there is, and waits."""
    url = f"{proxy.url}/run/{name}{GENERATE}"
    return pool.submit(requests.post, url, json=asked, timeout=60)


@steady
def test_a_proxy_that_dies(
    upstream: Simulator, two: list[Proxy], server: RedisServer, started: Started, name: str
) -> None:
    """What its calls held is free for others within seconds; what it had delivered is not."""
    mortal = started.proxy(server.url)
    started.proxies.remove(mortal)
    asked, pair = body(GENERATE, name), body(GENERATE, name, 2)
    draw(two[0], f"{name}-other", GENERATE, asked)
    draw(two[0], f"{name}-other", GENERATE, asked)
    assert places([draw(mortal, name, GENERATE, asked)]) == ["0"]
    until(lambda: told(two[0], name)["places"] == 1)
    upstream.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        lost = begin(pool, mortal, name, pair)
        until(lambda: upstream.waiting == 1)
        assert told(two[0], name)["places"] == 2
        mortal.stop(signal.SIGKILL)
        assert lost.exception()
    until(lambda: told(two[1], name)["places"] == 1)
    assert places([draw(two[1], name, GENERATE, asked)]) == ["1"]


@steady
def test_a_client_that_leaves(upstream: Simulator, two: list[Proxy], name: str) -> None:
    """Its places are free again, at the other proxy as well; so are those of a call that fails."""
    asked, pair = body(GENERATE, name), body(GENERATE, name, 2)
    draw(two[0], f"{name}-other", GENERATE, asked)
    for fault in (Fault.HOLD, Fault.ERROR_503, Fault.CUT):
        for form in ({}, {"stream": True}):
            upstream.faults.append(fault)
            answer, path = None, f"/run/{name}{GENERATE}"
            if fault is Fault.HOLD:
                leave(two[0], upstream, path, {**pair, **form})
            else:
                try:
                    answer = post(two[0], path, {**pair, **form})
                except requests.RequestException:
                    assert fault is not Fault.ERROR_503
            assert answer is None or answer.status_code in (502, 503), (fault, form)
            until(lambda: told(two[1], name)["places"] == 0)
    assert places([draw(two[1], name, GENERATE, asked)]) == ["0"]


@steady
def test_explained(two: list[Proxy], name: str) -> None:
    """What would become of a call of a run is what becomes of it, whichever proxy is asked."""
    asked = body(GENERATE, name)
    alternately(two, f"{name}-other", asked, 2)
    until_stored(two)
    for k, expected in enumerate(("hit", "hit", "miss")):
        request = {"path": f"/run/{name}{GENERATE}", "body": asked}
        found = requests.post(f"{two[k % 2].url}/cache/explain", json=request, timeout=10).json()
        assert (found["outcome"], found["run"]) == (expected, name), k
        answer = draw(two[(k + 1) % 2], name, GENERATE, asked)
        assert answer.headers["X-Cache"].lower() == expected, k
        until_stored(two)


@steady
def test_cleared(two: list[Proxy], name: str) -> None:
    """Where samples were cleared, the places of new ones are free."""
    asked = body(GENERATE, name)
    before = alternately(two, name, asked, 3)
    assert requests.post(f"{two[0].url}/cache/clear", timeout=30).ok
    until(lambda: not two[1].stats()["num_keys"])
    after = alternately(two, name, asked, 3)
    assert places(after) == ["0", "1", "2"]
    assert not {*map(str, map(texts, before))} & {*map(str, map(texts, after))}


def test_redis_is_away(
    upstream: Simulator, two: list[Proxy], server: RedisServer, started: Started, name: str
) -> None:
    """Calls of runs are answered all the same, with samples that nobody else has. What was taken
    before and meanwhile is not taken again once it is back, with what it had or empty."""
    for keeps in (True, False):
        run, asked = f"{name}-{keeps}", body(GENERATE, f"{name} {keeps}")
        draw(two[0], f"{run}-other", GENERATE, body(GENERATE, asked["text"], 4))
        seen = alternately(two, run, asked, 2)
        until(lambda: all(not shared(proxy)["pending"] for proxy in two))
        server.stop()
        if not keeps:
            shutil.rmtree(server.folder / "appendonlydir")
        try:
            # One of them notices by this call that it is away.
            seen += alternately(two, run, asked, 4)
            with ThreadPoolExecutor(8) as pool:
                seen += pool.map(lambda k: draw(two[k % 2], run, GENERATE, asked), range(8))  # noqa: B023
            told_of = requests.get(f"{two[0].url}/cache/runs/{run}", timeout=30)
            assert (told_of.status_code, "runs" in told_of.text) == (500, True)
        finally:
            server.start()
        until_state("up", two)
        seen += alternately(two, run, asked, 12)
        found = [text for answer in seen for text in texts(answer)]
        assert len(set(found)) == len(found) == 26, keeps
        for proxy in two:
            assert "their calls are generated anew" in proxy.log


def test_full(two: list[Proxy], server: RedisServer, name: str) -> None:
    """While Redis takes nothing more, calls are answered with samples that nobody else has."""
    asked = body(GENERATE, name)
    seen = alternately(two, name, asked, 2)
    with server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            seen += alternately(two, name, asked, 6)
        finally:
            client.config_set("maxmemory", 0)
    until(lambda: not any(shared(p)["is_full"] or shared(p)["pending"] for p in two), 20)
    seen += alternately(two, name, asked, 4)
    found = [text for answer in seen for text in texts(answer)]
    assert len(set(found)) == len(found) == 12
