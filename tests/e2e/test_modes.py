"""What the whole proxy does with the cache: `--mode`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import (
    BODIES,
    CALLS,
    CHAT,
    FORMS,
    GENERATE,
    ask,
    asking,
    heard,
    post,
    sampled,
    status_of,
)
from tests.e2e.conftest import StartFront
from tests.e2e.test_proxy import BYPASSES, bypassed
from tests.simulator import Fault, Simulator

pytestmark = pytest.mark.one_way


Filled = dict[str, dict[int, str]]


@pytest.fixture
def simulator(upstream: Simulator) -> Iterator[Simulator]:
    upstream.received.clear()
    yield upstream
    upstream.faults.clear()
    upstream.up()  # what was done to it is undone


@pytest.fixture(scope="module")
def recorded(
    upstream: Simulator, start_front: StartFront, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Filled]:
    """A cache that has two answers to all paths, and what they are."""
    proxy = start_front(upstream.url)
    stored = {path: heard(path, ask(proxy, path, asking(path, n=2))) for path in BODIES}
    folder = Path(proxy.stats()["cache_file"]).parent
    assert proxy.stop() == 0
    return folder, stored


@pytest.fixture
def filled(recorded: tuple[Path, Filled], simulator: Simulator, tmp_path: Path) -> Filled:
    """What is in the cache that the next proxy opens."""
    folder, stored = recorded
    shutil.copytree(folder, tmp_path / "cache")
    return stored


def journal(proxy: Proxy) -> bytes:
    return Path(proxy.stats()["cache_file"]).read_bytes()


def test_readonly(filled: Filled, simulator: Simulator, start_proxy: StartProxy) -> None:
    """Hits as ever; what is fetched is not stored, not even where the client wants it replaced."""
    proxy = start_proxy(simulator.url, "--mode", "readonly")
    before = journal(proxy)
    for path, form in CALLS:
        for n in (1, 2):
            hit = ask(proxy, path, asking(path, n=n, **form))
            assert hit.headers["X-Cache"] == "HIT"
            assert heard(path, hit) == {k: filled[path][k] for k in range(n)}
        partial = ask(proxy, path, asking(path, n=3, **form))
        assert partial.headers["X-Cache"] == "PARTIAL"
        assert heard(path, partial).items() > filled[path].items()
        for _ in range(2):
            miss = ask(proxy, path, asking(path, "new", **form))
            reason = "" if form else "; detail=readonly"  # of a stream it is told later
            assert status_of(miss) == ("MISS", f"sglang-cached; fwd=miss{reason}")
        fetched = ask(proxy, path, asking(path, n=2, **form), {"Cache-Control": "no-cache"})
        assert fetched.headers["X-Cache"] == "MISS"
        assert heard(path, fetched) != filled[path]
        assert heard(path, ask(proxy, path, asking(path, n=2, **form))) == filled[path]
    assert proxy.stats()["not_stored"] == {"readonly": 4 * len(CALLS)}
    assert proxy.stats()["total_responses"] == 2 * len(BODIES)
    assert len(sampled(simulator)) == 4 * len(CALLS)
    assert journal(proxy) == before


def test_readonly_still_collapses(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Equal calls at the same time each get their answer, stored or not."""
    proxy = start_proxy(simulator.url, "--mode", "readonly")
    for path, form in CALLS:
        simulator.faults.append(Fault.HOLD)
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, proxy, path, asking(path, **form)) for _ in range(4)]
            until(lambda: simulator.waiting)
            simulator.release()
            assert all(heard(path, answer.result()) for answer in answers)
    assert proxy.stats()["total_responses"] == 0


def test_refresh(filled: Filled, simulator: Simulator, start_proxy: StartProxy) -> None:
    """Each call is fetched anew, and what it brings takes the place of what was stored."""
    proxy = start_proxy(simulator.url, "--mode", "refresh")
    new: Filled = {}
    for path, form in CALLS:
        for _ in range(2):
            fetched = ask(proxy, path, asking(path, n=2, **form))
            assert fetched.headers["X-Cache"] == "MISS"
            before, new[path] = new.get(path, filled[path]), heard(path, fetched)
            assert not set(before.values()) & set(new[path].values())
    assert proxy.stats()["total_responses"] == 2 * len(BODIES)
    assert len(sampled(simulator)) == 2 * len(CALLS)
    assert proxy.stop() == 0
    after = start_proxy(simulator.url)
    for path, form in CALLS:
        assert heard(path, ask(after, path, asking(path, n=2, **form))) == new[path]
    assert after.stats()["hits"] == len(CALLS)


def test_off(filled: Filled, simulator: Simulator, start_proxy: StartProxy) -> None:
    """Every call goes upstream as it came; nothing is looked up or stored."""
    proxy = start_proxy(simulator.url, "--mode", "off")
    before = journal(proxy)
    for path, form in CALLS:
        answer = ask(proxy, path, asking(path, n=2, rid=None, **form))
        assert status_of(answer) == ("BYPASS", "sglang-cached; fwd=bypass; detail=off")
        assert not set(heard(path, answer).values()) & set(filled[path].values())
    assert [json.loads(r.body) for r in simulator.received if r.path in BODIES] == [
        asking(path, n=2, rid=None, **form) for path, form in CALLS
    ]
    assert proxy.stats()["bypasses"] == {"off": len(CALLS)}
    assert journal(proxy) == before
    assert proxy.stop() == 0
    after = start_proxy(simulator.url)
    assert heard(GENERATE, ask(after, GENERATE, asking(GENERATE, n=2))) == filled[GENERATE]


def test_off_still_sees_changes(
    filled: Filled, simulator: Simulator, start_proxy: StartProxy
) -> None:
    """Weights that change while the cache is off are not those of the stored answers."""
    proxy = start_proxy(simulator.url, "--mode", "off")
    body = {"serialized_named_tensors": ["x"]}
    assert post(proxy, "/update_weights_from_tensor", body).status_code == 200
    assert proxy.stop() == 0
    after = start_proxy(simulator.url)
    assert ask(after, GENERATE, asking(GENERATE)).headers["X-Cache"] == "MISS"


# Offline


@pytest.fixture
def offline(filled: Filled, simulator: Simulator, start_proxy: StartProxy) -> Proxy:
    """It is to work without upstream, and to leave one that is there alone."""
    return start_proxy(simulator.url, "--mode", "offline")


def test_offline(filled: Filled, simulator: Simulator, offline: Proxy) -> None:
    """Hits, and 504 for the rest; upstream is never asked, not even who it is."""
    for path, form in CALLS:
        hit = ask(offline, path, asking(path, n=2, **form), {"Authorization": "Bearer whoever"})
        assert status_of(hit) == ("HIT", "sglang-cached; hit")
        assert heard(path, hit) == filled[path]
        for body in (asking(path, "new", **form), asking(path, n=3, **form)):
            for value in ("", "no-cache", "max-age=9"):
                denied = ask(offline, path, body, {"Cache-Control": value} if value else {})
                assert denied.status_code == 504
                assert status_of(denied) == ("DENIED", "sglang-cached; detail=offline")
                assert denied.json()["error"]["code"] == 504
        for value in ("no-cache", "no-store"):
            denied = ask(offline, path, asking(path, **form), {"Cache-Control": value})
            assert denied.status_code == 504
    stats = offline.stats()
    assert (stats["hits"], stats["denied"], stats["misses"]) == (6, 48, 0)
    assert (stats["not_stored"], stats["total_responses"]) == ({}, 6)
    assert requests.get(f"{offline.url}/health", timeout=30).json()["status"] == "healthy"
    assert simulator.received == []


def test_offline_other_routes(simulator: Simulator, offline: Proxy) -> None:
    """There is nobody to ask, and the client is told so."""
    for method, path in (
        ("GET", "/model_info"),
        ("GET", "/v1/models"),
        ("POST", "/flush_cache"),
        ("POST", "/abort_request"),
        ("POST", "/update_weights_from_disk"),
        ("POST", "/load_lora_adapter"),
        ("PUT", "/upload"),
        ("DELETE", "/"),
        ("POST", "/generate?x=1"),
        ("GET", "/generate"),
        ("OPTIONS", "/generate"),
    ):
        answer = requests.request(method, offline.url + path, json={"rid": "x"}, timeout=30)
        assert answer.status_code == 504, (method, path)
        assert "--mode offline" in answer.json()["error"]["message"]
    head = requests.head(f"{offline.url}/v1/models", timeout=30)
    assert head.status_code == 504
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }  # fmt: skip
    socket = requests.get(f"{offline.url}/v1/realtime", headers=upgrade, timeout=30)
    assert socket.status_code == 504
    assert simulator.received == []
    assert ask(offline, GENERATE, asking(GENERATE)).headers["X-Cache"] == "HIT"


def test_offline_what_is_not_understood(simulator: Simulator, offline: Proxy) -> None:
    """Offline, a call that is not understood is not passed on."""
    found = {reason: bypassed(offline, reason).status_code for reason in BYPASSES}
    assert found == dict.fromkeys(BYPASSES, 504)
    assert simulator.received == []


def test_offline_without_upstream(
    filled: Filled, simulator: Simulator, start_proxy: StartProxy
) -> None:
    """The cache of one machine is of use on another, where no server runs."""
    simulator.down()
    for url in (simulator.url, "http://127.0.0.1:9"):
        proxy = start_proxy(url, "--mode", "offline")
        assert "does not answer" not in proxy.log
        for path, form in CALLS:
            hit = ask(proxy, path, asking(path, n=2, **form))
            assert heard(path, hit) == filled[path]
        assert ask(proxy, CHAT, asking(CHAT, "new")).status_code == 504
        assert proxy.stop() == 0


def test_offline_nothing_known(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Of an empty cache, too, it says what is wrong."""
    proxy = start_proxy(simulator.url, "--mode", "offline")
    for path, form in CALLS:
        denied = ask(proxy, path, asking(path, **form))
        assert denied.status_code == 504
        assert "Nothing is stored" in denied.json()["error"]["message"]
    assert simulator.received == []


NEAREST: list[tuple[dict[str, Any], str]] = [
    (asking(GENERATE, "one three"), 'text (asked "one three", stored "one two")'),
    (
        {**asking(GENERATE), "sampling_params": {"temperature": 0.5, "max_new_tokens": 8}},
        "sampling_params.temperature (asked 0.5, stored 0.9)",
    ),
    (asking(GENERATE, seed=1), "seed (asked 1, stored nothing)"),
    (
        {"text": "one two", "sampling_params": {"temperature": 0.9}},
        "sampling_params.max_new_tokens (asked nothing, stored 8)",
    ),
    (asking(GENERATE, n=3), "is the same, but"),
]


def test_nearest(simulator: Simulator, offline: Proxy) -> None:
    """A developer sees why a test's call is not the one that was recorded."""
    for body, told in NEAREST:
        for form in FORMS.values():
            message = ask(offline, GENERATE, {**body, **form}).json()["error"]["message"]
            assert "nearest" in message
            assert told in message


def test_nearest_for_who_comes_through_a_proxy(offline: Proxy) -> None:
    """Who comes through an nginx on this machine does not see what others have asked."""
    body = asking(GENERATE, "one three")
    for form in FORMS.values():
        denied = ask(offline, GENERATE, {**body, **form}, {"X-Forwarded-For": "10.0.0.1"})
        message = denied.json()["error"]["message"]
        assert "nearest" in message
        assert "one two" not in message


def test_unknown_mode(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A slip of the pen is told, with what could be meant."""
    proxy = start_proxy(simulator.url, "--mode", "of", ready=False)
    assert proxy.process.wait(30) != 0
    assert "offline" in proxy.log
