"""Several proxies that share one Redis, over real sockets."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from sglang_cached_addon.store.redis import element
from tests.certificates import certificate
from tests.conftest import Proxy, until
from tests.e2e.test_proxy import PARAMS, sampled
from tests.redis import RedisServer, free_port, needs_redis, running_redis
from tests.simulator import Fault, Profile, Simulator, running

pytestmark = needs_redis

CLIENTS = 24
SETTLE_SECONDS = 1.0
"""An answer that is older is stored, on a busy machine too."""


class Started(ExitStack):
    """Redis servers and proxies that end with it."""

    def __init__(self, upstream: Simulator, folder: Path) -> None:
        super().__init__()
        self.proxies: list[Proxy] = []
        self._servers = 0
        self._upstream = upstream
        self._folder = folder

    def redis(self, *options: str) -> RedisServer:
        folder = self._folder / f"redis-{self._servers}"
        folder.mkdir()
        self._servers += 1
        server = RedisServer(folder, *options)
        self.callback(server.stop)
        return server

    def proxy(self, url: str, *arguments: str, up: bool = True) -> Proxy:
        return self.some(1, url, *arguments, up=up)[0]

    def some(self, count: int, url: str, *arguments: str, up: bool = True) -> list[Proxy]:
        """So many proxies that share the Redis behind the URL, once it is `up` for them."""
        started = []
        for _ in range(count):
            folder = self._folder / f"proxy-{len(self.proxies)}"
            folder.mkdir()
            given = ["--sglang-url", self._upstream.url, "--port", "0", "--host", "127.0.0.1",
                     "--store", url, "--quiet", *arguments]  # fmt: skip
            proxy = Proxy(given, folder)
            self.callback(proxy.stop, signal.SIGKILL)
            self.proxies.append(proxy)
            started.append(proxy)
        for proxy in started:
            proxy.wait_until_ready()
            if up:
                until(lambda proxy=proxy: shared(proxy)["state"] == "up")
        return started

    def check(self) -> None:
        for proxy in self.proxies:
            assert "Traceback" not in proxy.log, proxy.log


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    with running(Profile()) as simulator:
        yield simulator


@pytest.fixture
def simulator(upstream: Simulator) -> Iterator[Simulator]:
    """What a test asks it is what it has received."""
    upstream.received.clear()
    yield upstream
    upstream.faults.clear()
    upstream.release()


@pytest.fixture
def started(simulator: Simulator, tmp_path: Path) -> Iterator[Started]:
    with Started(simulator, tmp_path) as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared_trio(
    upstream: Simulator, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Proxy]]:
    with Started(upstream, tmp_path_factory.mktemp("trio")) as found:
        yield found.some(3, server.url)
        found.check()


@pytest.fixture
def trio(shared_trio: list[Proxy], simulator: Simulator) -> list[Proxy]:
    """Three proxies that know nothing."""
    requests.post(f"{shared_trio[0].url}/cache/clear", timeout=10)
    until(lambda: not any(proxy.stats()["num_keys"] for proxy in shared_trio))
    return shared_trio


def shared(proxy: Proxy) -> dict[str, Any]:
    return proxy.stats()["shared"]


def asking(text: str, n: int = 1) -> dict[str, Any]:
    return {"text": text, "sampling_params": {**PARAMS, "n": n}}


_sessions = threading.local()


def ask(proxy: Proxy, text: str, n: int = 1, seconds: float = 30, **headers: str) -> list[str]:
    """What a proxy answers to a call for n samples."""
    if not hasattr(_sessions, "session"):
        _sessions.session = requests.Session()
    answer = _sessions.session.post(
        f"{proxy.url}/generate", json=asking(text, n), timeout=seconds, headers=headers
    )
    assert answer.status_code == 200, answer.text
    value = answer.json()
    return [one["text"] for one in (value if n > 1 else [value])]


def generated(simulator: Simulator) -> Counter[str]:
    """Samples by prompt."""
    counts: Counter[str] = Counter()
    for body in sampled(simulator):
        counts[body["text"]] += body["sampling_params"].get("n", 1)
    return counts


def calls(keys: int, each: int) -> list[tuple[str, int]]:
    """So many for each of so many prompts, in no order."""
    chance = random.Random(1)
    found = [(f"prompt {i}", chance.randint(1, 8)) for i in range(keys) for _ in range(each)]
    chance.shuffle(found)
    return found


def test_each_sample_is_generated_once(simulator: Simulator, trio: list[Proxy]) -> None:
    """Three proxies, one pool for each of a thousand keys, asked in parallel for 1 to 8 samples."""
    todo = calls(1000, 3)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda i: ask(trio[i % 3], *todo[i]), range(len(todo))))
    most: Counter[str] = Counter()
    for text, n in todo:
        most[text] = max(most[text], n)
    assert generated(simulator) == most
    pools: dict[str, list[str]] = {}
    for (text, n), answer in zip(todo, answers, strict=True):
        assert len(answer) == n
        longest = max(pools.get(text, []), answer, key=len)
        # Each has the first of the same samples, wherever it asked.
        assert longest[:n] == answer
        assert longest[: len(pools.get(text, []))] == pools.get(text, [])
        pools[text] = longest
    for proxy in trio:
        until(lambda proxy=proxy: is_idle(proxy))


def is_idle(proxy: Proxy) -> bool:
    facts = shared(proxy)
    return not (facts["leases"] or facts["waiting"] or facts["pending"])


@pytest.mark.parametrize("keeps", [True, False], ids=["appendonly", "emptied"])
def test_a_proxy_dies_and_redis_restarts(
    keeps: bool, simulator: Simulator, started: Started
) -> None:
    """All is answered, rightly. What is generated twice is what was asked while Redis was away, or
    was under way at the dead proxy; where Redis comes back empty, what only others had, too."""
    server = started.redis("--appendonly", "yes" if keeps else "no")
    trio = started.some(3, server.url)
    todo = calls(1000 if keeps else 300, 2)
    spans: list[tuple[float, float]] = [(0.0, 0.0)] * len(todo)
    dead = threading.Event()

    def one(i: int) -> list[str]:
        started = time.monotonic()
        proxy = trio[i % 3]
        try:
            found = ask(trio[1] if proxy is trio[0] and dead.is_set() else proxy, *todo[i])
        except requests.RequestException:
            assert proxy is trio[0]
            found = ask(trio[1], *todo[i])
        spans[i] = (started, time.monotonic())
        return found

    def count() -> int:
        return sum(end > 0 for _, end in spans)

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(one, i) for i in range(len(todo))]
        until(lambda: count() > len(todo) / 5)
        dead.set()
        killed = time.monotonic()
        trio[0].stop(signal.SIGKILL)
        until(lambda: count() > len(todo) * 2 / 5)
        stopped = time.monotonic()
        server.stop()
        until(lambda: count() > len(todo) * 3 / 5)
        server.start()
        for proxy in trio[1:]:
            until(lambda proxy=proxy: shared(proxy)["state"] == "up")
        back = time.monotonic()
        texts = [answer.result() for answer in answers]
    most: Counter[str] = Counter()
    away: Counter[str] = Counter()
    for (text, n), found, (start, end) in zip(todo, texts, spans, strict=True):
        assert len(found) == len(set(found)) == n
        most[text] = max(most[text], n)
        was_away = end > stopped - SETTLE_SECONDS and start < back
        if was_away or start < killed < end + SETTLE_SECONDS:
            away[text] += n
    extra = generated(simulator) - most
    if keeps:
        assert not extra - away
    assert all(count <= 2 * most[text] for text, count in extra.items())
    assert max(end - start for start, end in spans) < 10
    for proxy in trio[1:]:
        until(lambda proxy=proxy: is_idle(proxy))
        assert proxy.log.count("answers are not shared until it is back") == 1
        assert proxy.log.count("/0 is back\n") == 1
    # From now on all is as before.
    for number in range(20):
        first = ask(trio[1], f"after {number}", 2)
        assert ask(trio[2], f"after {number}", 2) == first
    assert len(generated(simulator)) == len(most) + 20


def test_followers_of_another_proxy(simulator: Simulator, trio: list[Proxy]) -> None:
    """Equal calls at three proxies are one call upstream, and all are woken at once."""
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, trio[0], "one", 2)
        until(lambda: simulator.waiting == 1)
        others = [pool.submit(ask, proxy, "one", 2) for proxy in trio[1:]]
        until(lambda: all(shared(proxy)["waiting"] == 1 for proxy in trio[1:]))
        before = [shared(proxy)["commands"] for proxy in trio[1:]]
        released = time.monotonic()
        simulator.release()
        assert [other.result() for other in others] == [first.result()] * 2
        assert time.monotonic() - released < 0.5
    assert generated(simulator) == {"one": 2}
    # Nobody asks again and again.
    assert max(shared(p)["commands"] - n for p, n in zip(trio[1:], before, strict=True)) < 8


def test_streams_follow_too(simulator: Simulator, trio: list[Proxy]) -> None:
    body = {**asking("one"), "stream": True}
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(3) as pool:
        url = "{}/generate"
        posts = [
            pool.submit(requests.post, url.format(proxy.url), json=body, timeout=30)
            for proxy in trio
        ]
        until(lambda: simulator.waiting == 1)
        until(lambda: sum(shared(proxy)["waiting"] for proxy in trio) == 2)
        simulator.release()
        ends = {post.result().content.split(b"\n\n")[-3] for post in posts}
    assert len(ends) == 1
    assert generated(simulator) == {"one": 1}


def test_leaders_that_are_dead_and_slow(simulator: Simulator, started: Started) -> None:
    """One that has died frees its keys within seconds; one that lives keeps them for as long as the
    call upstream takes."""
    trio = started.some(3, started.redis().url)
    simulator.faults.extend([Fault.HOLD, Fault.HOLD])
    with ThreadPoolExecutor(4) as pool:
        lost = pool.submit(ask, trio[0], "dead")
        until(lambda: simulator.waiting == 1)
        first = pool.submit(ask, trio[1], "slow")
        until(lambda: simulator.waiting == 2)
        second = pool.submit(ask, trio[2], "slow")
        waiting = pool.submit(ask, trio[2], "dead")
        until(lambda: shared(trio[2])["waiting"] == 2)
        trio[0].stop(signal.SIGKILL)
        died = time.monotonic()
        assert waiting.result()
        assert time.monotonic() - died < 7
        assert lost.exception()
        until(lambda: time.monotonic() - died > 6)  # longer than a lease
        assert not second.done()
        simulator.release()
        assert first.result() == second.result()
    assert generated(simulator) == {"slow": 1, "dead": 2}


def test_a_client_that_leaves_frees_them(simulator: Simulator, trio: list[Proxy]) -> None:
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(ask, trio[0], "one", 1, 1.0)
        until(lambda: simulator.waiting == 1)
        waiting = pool.submit(ask, trio[1], "one")
        until(lambda: shared(trio[1])["waiting"] == 1)
        assert isinstance(left.exception(), requests.Timeout)
        gone = time.monotonic()
        assert waiting.result()
        assert time.monotonic() - gone < 1


# What one changes, the others see


def test_clear(simulator: Simulator, trio: list[Proxy]) -> None:
    old = [ask(proxy, "one", 3) for proxy in trio]
    assert old == [old[0]] * 3
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        # Begun before the clear, by who does not know of it yet: not stored by anybody.
        late = pool.submit(ask, trio[2], "late")
        until(lambda: simulator.waiting == 1)
        answer = requests.post(f"{trio[0].url}/cache/clear", timeout=10)
        assert answer.status_code == 200
        until(lambda: not any(proxy.stats()["num_keys"] for proxy in trio), 1.0)
        simulator.release()
        text = late.result()
    assert ask(trio[1], "late") != text
    new = [ask(proxy, "one", 3) for proxy in trio]
    assert new == [new[0]] * 3
    assert not set(new[0]) & set(old[0])


def test_clear_of_another_model(simulator: Simulator, trio: list[Proxy]) -> None:
    old = [ask(proxy, "one") for proxy in trio]
    requests.post(f"{trio[0].url}/cache/clear?model=other", timeout=10)
    ask(trio[0], "two")
    assert [ask(proxy, "one") for proxy in trio] == old
    assert requests.post(f"{trio[0].url}/cache/clear?model=current", timeout=10).ok
    until(lambda: not any(proxy.stats()["num_keys"] for proxy in trio), 1.0)


def test_replacement(simulator: Simulator, trio: list[Proxy]) -> None:
    """What a client has refreshed is what all others get."""
    old = [ask(proxy, "one", 2) for proxy in trio]
    new = ask(trio[0], "one", 2, **{"Cache-Control": "no-cache"})
    assert not set(new) & set(old[0])
    until(lambda: [ask(proxy, "one", 2) for proxy in trio] == [new] * 3, 1.0)
    assert generated(simulator) == {"one": 4}


def test_a_clock_that_runs_ahead(
    simulator: Simulator, trio: list[Proxy], server: RedisServer
) -> None:
    """What a proxy has stored whose clock is an hour ahead could not be replaced for an hour."""
    old = ask(trio[0], "one", 2)
    until(lambda: not shared(trio[0])["pending"])
    with server.client() as client:
        (name,) = (key for key in client.keys("*}:[0-9]*") if client.type(key) == b"list")
        for place, one in enumerate(client.lrange(name, 0, -1)):
            dialect, sample = element.decode(one)
            later = replace(sample, stored_at=sample.stored_at + 3600)
            client.lset(name, place, element.encode(dialect, later))
        assert ask(trio[1], "one", 2) == old, "to who does not ask for its age, it is as any other"
        first = ask(trio[1], "one", **{"Cache-Control": "max-age=60"})
        assert first != old[:1]
        assert client.llen(name) == 2
        until(lambda: ask(trio[2], "one", 2) == [*first, old[1]])
        both = ask(trio[2], "one", 2, **{"Cache-Control": "no-cache"})
        assert not set(both) & {*old, *first}
        until(lambda: [ask(proxy, "one", 2) for proxy in trio[1:]] == [both] * 2)
        assert client.llen(name) == 2
    assert generated(simulator) == {"one": 5}


def test_model_change(simulator: Simulator, started: Started) -> None:
    server = started.redis()
    trio = started.some(3, server.url, "--poll-seconds", "3600")
    old = [ask(proxy, "one") for proxy in trio]
    assert old == [old[0]] * 3
    update = f"{trio[0].url}/update_weights_from_tensor"
    assert requests.post(update, json={"serialized_named_tensors": ["x"]}, timeout=10).ok
    until(lambda: ask(trio[1], "one") != old[0], 1.0)
    until(lambda: len({fingerprint(proxy) for proxy in trio}) == 1, 1.0)
    ask(trio[0], "two")
    until(lambda: ask(trio[0], "two") == ask(trio[1], "two") == ask(trio[2], "two"))
    # One that comes later knows of it as well.
    late = started.proxy(server.url)
    assert ask(late, "two") == ask(trio[0], "two")
    assert fingerprint(late) == fingerprint(trio[0])


def fingerprint(proxy: Proxy) -> str:
    return str(requests.get(f"{proxy.url}/cache/info", timeout=10).json()["model"]["fingerprint"])


# Redis in trouble


def test_frozen(simulator: Simulator, started: Started) -> None:
    """Nothing waits for it longer than a moment."""
    server = started.redis()
    trio = started.some(3, server.url)
    old = ask(trio[0], "one")
    server.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(8) as pool:
        started = time.monotonic()
        found = [pool.submit(ask, trio[i % 3], f"new {i}") for i in range(24)]
        assert all(len(one.result()) == 1 for one in found)
        assert time.monotonic() - started < 3
    assert ask(trio[0], "one") == old
    update = f"{trio[0].url}/update_weights_from_tensor"
    started = time.monotonic()
    assert requests.post(update, json={"serialized_named_tensors": ["x"]}, timeout=10).ok
    assert time.monotonic() - started < 1.5
    started = time.monotonic()
    assert requests.post(f"{trio[0].url}/cache/clear", timeout=10).status_code == 500
    assert time.monotonic() - started < 3
    server.signal(signal.SIGCONT)
    for proxy in trio:
        until(lambda proxy=proxy: shared(proxy)["state"] == "up")
        until(lambda proxy=proxy: is_idle(proxy))
        assert proxy.log.count("no answer within") == 1
    until(lambda: len({fingerprint(proxy) for proxy in trio}) == 1)
    until(lambda: not trio[2].stats()["num_keys"])
    again = ask(trio[1], "one")
    assert again != old
    assert ask(trio[2], "one") == again


def test_full(simulator: Simulator, started: Started) -> None:
    """What is there is still read, and nothing waits."""
    server = started.redis("--maxmemory-policy", "noeviction")
    pair = started.some(2, server.url)
    old = ask(pair[0], "one")
    until(lambda: is_idle(pair[0]))
    with server.client() as client:
        client.config_set("maxmemory", 1)
        started = time.monotonic()
        assert ask(pair[1], "one") == old
        for number in range(10):
            ask(pair[number % 2], f"new {number}")
        assert time.monotonic() - started < 2
        until(lambda: shared(pair[0])["is_full"])
        assert ask(pair[0], "new 0", 2)
        client.config_set("maxmemory", 0)
    for proxy in pair:
        until(lambda proxy=proxy: is_idle(proxy))
        assert proxy.log.count("takes nothing more") == 1
        assert proxy.log.count("has room again") == 1
    # What could not be shared then is, now.
    assert ask(pair[1], "new 0", 2) == ask(pair[0], "new 0", 2)


@pytest.mark.parametrize("trouble", ["away", "password"])
def test_not_to_be_had(trouble: str, simulator: Simulator, started: Started) -> None:
    """Serving begins and goes on without it."""
    server = started.redis("--requirepass", "secret-of-redis")
    url = server.url.replace("redis://", "redis://:wrong-secret@")
    if trouble == "away":
        server.stop()
    proxy = started.proxy(url, up=False)
    assert ask(proxy, "one") == ask(proxy, "one")
    until(lambda: "answers are not shared" in proxy.log)
    info = requests.get(f"{proxy.url}/cache/info", timeout=10)
    assert info.json()["shared"]["state"] == "down"
    assert "secret" not in info.text + proxy.log + proxy.banner
    assert proxy.stop() == 0


def test_password_and_socket(simulator: Simulator, started: Started) -> None:
    server = started.redis("--requirepass", "secret/of@redis", "--unixsocket", "redis.sock")
    pair = [
        started.proxy(server.url.replace("//", "//:secret%2Fof%40redis@")),
        started.proxy(f"unix://{server.folder}/redis.sock?password=secret%2Fof%40redis"),
    ]
    assert ask(pair[0], "one") == ask(pair[1], "one")
    for proxy in pair:
        info = requests.get(f"{proxy.url}/cache/info", timeout=10)
        assert "secret" not in info.text + proxy.log + proxy.banner


def test_tls(simulator: Simulator, started: Started, tmp_path: Path) -> None:
    port, pem = free_port(), str(certificate(tmp_path))
    started.redis(
        "--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem,
        "--tls-ca-cert-file", pem, "--tls-auth-clients", "no",
    )  # fmt: skip
    url = f"rediss://127.0.0.1:{port}/0"
    everything_shared(simulator, started.some(2, f"{url}?ssl_ca_certs={pem}"))
    stranger = started.proxy(url, up=False)
    assert ask(stranger, "one") and ask(stranger, "two")
    assert shared(stranger)["state"] != "up"
    assert stranger.log.count("CERTIFICATE_VERIFY_FAILED") == 1


@pytest.mark.parametrize("count", [1, 3])
def test_cluster(count: int, simulator: Simulator, started: Started) -> None:
    buses = [free_port() for _ in range(count)]
    nodes = [started.redis("--cluster-enabled", "yes", "--cluster-port", str(b)) for b in buses]
    slots = [16384 * i // count for i in range(count + 1)]
    for node, (first, end) in zip(nodes, itertools.pairwise(slots), strict=True):
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for other, bus in zip(nodes, buses, strict=True):
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
    for node in nodes:
        with node.client() as client:
            until(lambda client=client: b"state:ok" in client.execute_command("CLUSTER", "INFO"))
    pair = started.some(2, nodes[0].url.replace("redis:", "redis+cluster:"))
    everything_shared(simulator, pair)
    texts = [ask(pair[i % 2], f"prompt {i}") for i in range(30)]
    assert [ask(pair[1 - i % 2], f"prompt {i}") for i in range(30)] == texts
    if count > 1:
        for node in nodes:
            with node.client() as client:
                assert client.dbsize(), "a node has nothing"
        nodes[1].stop()
        # What it had is at hand, and what it would have is generated.
        assert [ask(pair[1 - i % 2], f"prompt {i}") for i in range(30)] == texts
        began = time.monotonic()
        assert all(ask(pair[i % 2], f"new {i}") for i in range(30))
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("fails", [False, True], ids=["stays", "fails"])
def test_sentinel(fails: bool, simulator: Simulator, started: Started) -> None:
    server = started.redis()
    port = free_port()
    config = server.folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {server.port} 1\n"
        "sentinel down-after-milliseconds main 500\n"
    )
    if fails:
        replica = started.redis("--replicaof", f"127.0.0.1 {server.port}")
        with server.client() as client:
            until(lambda: client.info("replication").get("slave0", {}).get("state") == "online")
    with running_redis(server.folder, str(config), "--sentinel", port=port):
        pair = started.some(2, f"redis+sentinel://127.0.0.1:{port}/main/0")
        everything_shared(simulator, pair)
        if not fails:
            return
        with redis.Redis(port=port) as sentinel:
            until(lambda: sentinel.execute_command("SENTINEL", "REPLICAS", "main"))
            texts = [ask(pair[i % 2], f"prompt {i}") for i in range(10)]
            until(lambda: all(is_idle(proxy) for proxy in pair), 5)
            server.stop()
            assert ask(pair[0], "meanwhile")
            until(lambda: sentinel.sentinel_get_master_addr_by_name("main")[1] == replica.port, 30)
        until(lambda: all(shared(proxy)["state"] == "up" for proxy in pair), 10)
        for _ in range(3):
            third = started.proxy(f"redis+sentinel://127.0.0.1:{port}/main/0")
            again = [ask(third, f"prompt {i}") for i in range(10)]
            if again == texts:
                break
            # On a busy machine the master may take too long, and then it is left alone.
            assert "no answer within" in third.log, third.log
        assert again == texts
        everything_shared(simulator, pair)


def everything_shared(simulator: Simulator, pair: list[Proxy]) -> None:
    simulator.received.clear()
    old = ask(pair[0], "one", 2)
    assert ask(pair[1], "one", 3)[:2] == old
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(2) as pool:
        batch = {"text": ["a", "b", "c"], "sampling_params": PARAMS}
        posts = [
            pool.submit(requests.post, f"{proxy.url}/generate", json=batch, timeout=30)
            for proxy in pair
        ]
        until(lambda: simulator.waiting == 1)
        until(lambda: sum(shared(proxy)["waiting"] for proxy in pair) == 1)
        simulator.release()
        texts = [[one["text"] for one in post.result().json()] for post in posts]
    assert texts[0] == texts[1]
    assert sum(len(b["text"]) for b in sampled(simulator) if isinstance(b["text"], list)) == 3
    requests.post(f"{pair[0].url}/cache/clear", timeout=10)
    until(lambda: not pair[1].stats()["num_keys"], 1.0)
    assert ask(pair[1], "one", 2) != old


# A folder beside it


def test_folder(simulator: Simulator, started: Started, tmp_path: Path) -> None:
    """It has what was generated here and what was brought, without Redis as with it."""
    server = started.redis()
    folder = ("--cache-path", str(tmp_path / "cache"))
    other, proxy = started.proxy(server.url), started.proxy(server.url, *folder)
    texts = [ask(other, "one", 2), ask(proxy, "two", 2)]
    assert ask(proxy, "one", 3)[:2] == texts[0]
    assert ask(other, "two", 3)[:2] == texts[1]
    assert ask(proxy, "two", 3) == ask(other, "two", 3)
    assert proxy.stop() == 0
    server.stop()
    proxy = started.proxy(server.url, *folder, up=False)
    asked = len(sampled(simulator))
    assert ask(proxy, "one", 2) == texts[0]
    assert ask(proxy, "two", 3)[:2] == texts[1]
    assert len(sampled(simulator)) == asked
    assert proxy.stop() == 0


def test_folder_that_missed_something(
    simulator: Simulator, started: Started, tmp_path: Path
) -> None:
    """What was cleared or replaced while it was closed is not there when it opens."""
    server = started.redis()
    folder = ("--cache-path", str(tmp_path / "cache"))
    other, proxy = started.proxy(server.url), started.proxy(server.url, *folder)
    old = ask(proxy, "one")
    assert ask(other, "one") == old
    until(lambda: "shared" in (tmp_path / "cache/state.json").read_text())
    assert proxy.stop() == 0
    new = ask(other, "one", **{"Cache-Control": "no-cache"})
    until(lambda: is_idle(other))
    proxy = started.proxy(server.url, *folder)
    assert ask(proxy, "one") == new
    assert proxy.stop() == 0
    requests.post(f"{other.url}/cache/clear", timeout=10)
    proxy = started.proxy(server.url, *folder)
    assert proxy.stats()["num_keys"] == 0
    assert ask(proxy, "one") not in (old, new)


def test_round_trips(simulator: Simulator, trio: list[Proxy]) -> None:
    """A hit costs none, a miss two: one to look and claim, one to push and let go; what another
    proxy has is one."""

    def commands(proxy: Proxy, text: str, n: int = 1) -> int:
        before = shared(proxy)["commands"]
        ask(proxy, text, n)
        until(lambda: is_idle(proxy))
        return int(shared(proxy)["commands"]) - before

    def least(proxy: Proxy, name: str, n: int = 1) -> int:
        # Keeping up with the others costs some, twice a second.
        return min(commands(proxy, name.format(i), n) for i in range(4))

    assert least(trio[0], "prompt {}") == 3
    assert least(trio[0], "prompt {}") == 0
    assert least(trio[1], "prompt {}") == 1
    assert least(trio[1], "prompt {}") == 0
    assert least(trio[1], "prompt {}", 2) == 3
