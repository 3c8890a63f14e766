"""The proxy's own routes: who may see and clear what is stored."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import BODIES, post, sampled
from tests.e2e.conftest import StartFront
from tests.simulator import Simulator
from tests.tables import each

TOKEN = "t0ken-\xe9 with=odd/signs"
OPEN = (("GET", "/cache/stats"), ("GET", "/health"))
PRIVATE = (("GET", "/cache/info"), ("POST", "/cache/clear"))
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def open_to_all(upstream: Simulator, start_front: StartFront) -> Proxy:
    """A proxy without a token."""
    return start_front(upstream.url)


@pytest.fixture
def shared(open_to_all: Proxy) -> Proxy:
    """The same, with one entry."""
    requests.post(f"{open_to_all.url}/cache/clear", timeout=30).raise_for_status()
    assert fill(open_to_all) == 1
    return open_to_all


@pytest.fixture
def guarded(upstream: Simulator, start_proxy: StartProxy) -> Proxy:
    """A proxy with a token, on all interfaces."""
    proxy = start_proxy(upstream.url, "--admin-token", TOKEN, "--host", "0.0.0.0")
    assert fill(proxy) == 1
    return proxy


def fill(proxy: Proxy) -> int:
    post(proxy, "/generate", BODIES["/generate"])
    stored: int = proxy.stats()["total_responses"]
    return stored


def call(
    url: str, method: str, path: str, headers: dict[str, Any], source: str = "", body: bytes = b""
) -> tuple[int, bytes, Any]:
    """Status, body and head of what somebody at the `source` is answered; the header fields are
    sent as they are, in Latin-1."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "", parts.port, timeout=30, source_address=(source, 0) if source else None
    )
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value.encode("utf-8"))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def statuses(url: str, headers: dict[str, Any], source: str = "") -> tuple[list[int], list[int]]:
    """What the open and the private routes answer; info first, so that a clear spoils nothing."""
    found = [
        [call(url, m, path, headers, source)[0] for m, path in routes] for routes in (OPEN, PRIVATE)
    ]
    return found[0], found[1]


def elsewhere() -> str:
    """An address of this machine that is not the loopback: whoever comes from there to the loopback
    is like somebody on another machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
            address = probe.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("this machine has no other address")
    return str(address)


def test_on_this_machine(shared: Proxy) -> None:
    """Without a token, who is on the machine may see and clear."""
    port = urlsplit(shared.url).port
    for headers in (
        {},
        {"Host": f"localhost:{port}"},
        {"Host": "LOCALHOST"},
        {"Host": f"[::1]:{port}"},
        {"Host": f"10.1.2.3:{port}"},
        {"Origin": shared.url},
        {"Origin": shared.url, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Authorization": "Bearer anything"},
    ):
        assert fill(shared) == 1
        assert statuses(shared.url, headers) == ([200, 200], [200, 200]), headers
        assert shared.stats()["total_responses"] == 0


CROSS_SITE: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://localhost"},  # another port is another origin
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
]
REBOUND: list[dict[str, str]] = [
    {"Host": "evil.example"},
    {"Host": "evil.example:30001"},
    {"Host": "localhost.evil.example"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "127.0.0.1@evil.example"},
    {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"},
]


FORWARDED = [
    {name: "127.0.0.1"}
    for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Via",
                 "x-real-ip")
]  # fmt: skip


@each("headers", [*CROSS_SITE, *REBOUND, *FORWARDED])
def test_strangers_on_this_machine(headers: dict[str, str], shared: Proxy) -> None:
    """A page in somebody's browser neither reads what was asked nor clears it; a name that was made
    to point here (DNS rebinding) opens nothing, nor does an nginx on this machine."""
    assert fill(shared) == 1
    assert statuses(shared.url, headers) == ([200, 200], [403, 403])
    body = call(shared.url, "GET", "/cache/info", headers)[1]
    assert (b"pages of other sites" in body) == (headers not in FORWARDED)
    assert b"cache_dir" not in body
    assert shared.stats()["total_responses"] == 1
    if headers in FORWARDED:
        for path in ("/cache/stats", "/health"):
            body = call(shared.url, "GET", path, headers)[1]
            assert b"127.0.0.1" not in body
            assert b"cache.jsonl" not in body


@pytest.mark.one_way
def test_health_waits_for_nobody(start_proxy: StartProxy, tmp_path: Path) -> None:
    """A probe of the proxy succeeds while its upstream says nothing."""
    folders = map(str, count())
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def seconds() -> float:
            """How long the routes take of a proxy that has just started."""
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            proxy = start_proxy(url, cache=tmp_path / next(folders))
            with ThreadPoolExecutor(1) as pool, closing(silent.accept()[0]):
                waits = pool.submit(post, proxy, "/generate", BODIES["/generate"])
                began = time.monotonic()
                for path in ("/health", "/cache/stats", "/cache/info"):
                    assert requests.get(proxy.url + path, timeout=30).status_code == 200
                found = time.monotonic() - began
                proxy.stop(signal.SIGKILL)
                assert isinstance(waits.exception(), requests.RequestException)
            return found

        # It takes two seconds to give up on upstream. A machine may be busy with much else once.
        until(lambda: seconds() < 1.5)


def test_adapter_without_end(shared: Proxy) -> None:
    """A body that names an adapter is not kept beyond a size."""
    before = shared.peak()
    for path in ("/load_lora_adapter", "/unload_lora_adapter"):
        body = (bytes(1 << 20) for _ in range(16))
        answer = requests.post(f"{shared.url}{path}", data=body, timeout=60)
        assert 400 <= answer.status_code < 500  # upstream's word
    assert shared.peak() - before < 14 << 20


def test_upstream_has_a_name(start_proxy: StartProxy) -> None:
    """How upstream is called says nothing of who asks."""
    proxy = start_proxy("http://gpu-box.invalid:30000")
    assert statuses(proxy.url, {}) == ([200, 200], [200, 200])


def test_from_another_machine(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Without a token, nobody else may, but for who comes to the machine's own address from
    there."""
    proxy = start_proxy(simulator.url, "--host", "0.0.0.0")
    far = elsewhere()
    for url in (proxy.url, f"http://{far}:{urlsplit(proxy.url).port}"):
        assert fill(proxy) == 1
        for headers in ({}, {"Host": "localhost"}, {"X-Forwarded-For": "127.0.0.1"}, BEARER):
            assert statuses(proxy.url, headers, far) == ([200, 200], [403, 403]), headers
        assert b"--admin-token" in call(proxy.url, "POST", "/cache/clear", {}, far)[1]
        assert proxy.stats()["total_responses"] == 1
        kind, body = {"Content-Type": "application/json"}, json.dumps(BODIES["/generate"]).encode()
        assert call(proxy.url, "POST", "/generate", kind, far, body)[2]["X-Cache"] == "HIT"
        assert statuses(url, {}) == ([200, 200], [200, 200])


def test_token(guarded: Proxy) -> None:
    """With a token it is asked of everybody, also on the machine."""
    for value in (
        None,
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Basic {TOKEN}",
        f"Bearer Bearer {TOKEN}",
        f"Bearer {TOKEN}, Bearer x",
    ):
        headers = {} if value is None else {"Authorization": value}
        assert statuses(guarded.url, headers) == ([200, 200], [401, 401]), value
        _, body, head = call(guarded.url, "GET", "/cache/info", headers)
        assert head["WWW-Authenticate"] == "Bearer"
        assert b"admin token" in body
        assert TOKEN.encode() not in body
        assert b"cache_dir" not in body
    assert guarded.stats()["total_responses"] == 1
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert fill(guarded) == 1
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert statuses(guarded.url, headers) == ([200, 200], [200, 200]), scheme
        assert guarded.stats()["total_responses"] == 0


def test_token_and_pages(guarded: Proxy) -> None:
    """A token that a browser knows is no leave for a page of another site; but a proxy with a
    token may have any name."""
    for headers in CROSS_SITE:
        assert statuses(guarded.url, {**headers, **BEARER}) == ([200, 200], [403, 403]), headers
    assert guarded.stats()["total_responses"] == 1
    for headers in REBOUND[:-1]:
        assert statuses(guarded.url, {**headers, **BEARER})[1] == [200, 200], headers


def test_token_from_another_machine(guarded: Proxy) -> None:
    """With a token, it may be anywhere."""
    far = elsewhere()
    assert statuses(guarded.url, {}, far) == ([200, 200], [401, 401])
    assert statuses(guarded.url, BEARER, far) == ([200, 200], [200, 200])


def test_token_goes_nowhere(upstream: Simulator, guarded: Proxy) -> None:
    """Upstream neither hears the token nor of these routes, whatever the method."""
    upstream.received.clear()
    for method in ("GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"):
        for _, path in (*OPEN, *PRIVATE):
            call(guarded.url, method, f"{path}?x=1", BEARER)
    assert [
        r.path for r in upstream.received if r.path not in ("/model_info", "/server_info")
    ] == []
    assert not [r for r in upstream.received if TOKEN in str(r.headers)]


QUERIES = ["model=", "model=all&model=all", "Model=all", "model=al%6C", "x", "all=1"]


def test_clear_what(shared: Proxy) -> None:
    """What is not understood clears nothing."""
    call(shared.url, "POST", "/cache/clear", {})
    assert fill(shared) == 1
    for query in QUERIES:
        status, body, _ = call(shared.url, "POST", f"/cache/clear?{query}", {})
        assert status == 400, query
        assert b"current|other|all" in body
    assert call(shared.url, "POST", "/cache/clear?model=none", {})[0] == 404
    assert shared.stats()["total_responses"] == 1
    name = shared.info()["model"]["name"]
    for query, cleared in (("model=other", 0), (f"model={name}", 1), ("model=all", 0)):
        answer = requests.post(f"{shared.url}/cache/clear?{query}", timeout=30)
        assert answer.json() == {
            "status": "success", "cleared_keys": cleared, "cleared_responses": cleared
        }  # fmt: skip


def test_while_it_works(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Clears under load lose no answer and bring none back."""
    proxy = start_proxy(simulator.url)

    def ask(k: int) -> list[str]:
        bodies = [{**BODIES["/generate"], "text": f"{k} {i % 5}"} for i in range(25)]
        return [post(proxy, "/generate", body).json()["text"] for body in bodies]

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, k) for k in range(4)]
        while not all(answer.done() for answer in answers):
            assert requests.post(f"{proxy.url}/cache/clear", timeout=30).status_code == 200
        assert all(all(answer.result()) for answer in answers)
    stats = proxy.stats()
    assert stats["misses"] == len(sampled(simulator))
    lost = sum(stats["not_stored"].values())
    assert stats["not_stored"] == ({"cleared": lost} if lost else {})
    assert stats["total_responses"] + lost <= len(sampled(simulator))
