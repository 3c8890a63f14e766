"""Several proxies that share one Redis, over real sockets."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import redis
import requests

from sglang_cached_addon.store.redis import element
from tests.certificates import certificate
from tests.conftest import Proxy, until
from tests.e2e.calls import PARAMS, post, raw, sampled
from tests.ports import free_port
from tests.redis import RedisServer, needs_redis, running_redis
from tests.simulator import Fault, Simulator

pytestmark = [needs_redis, pytest.mark.shared]

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
        return self.some([url], *arguments, up=up)[0]

    def some(self, urls: Sequence[str], *arguments: str, up: bool = True) -> list[Proxy]:
        """A proxy for each URL of a Redis, once that is `up` for it."""
        started = []
        for url in urls:
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
            until_state("up", started)
        return started

    def check(self) -> None:
        for proxy in self.proxies:
            assert "Traceback" not in proxy.log, proxy.log


@pytest.fixture
def started(simulator: Simulator, tmp_path: Path) -> Iterator[Started]:
    with Started(simulator, tmp_path) as found:
        yield found
        found.check()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shared_trio(
    upstream: Simulator, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Proxy]]:
    with Started(upstream, tmp_path_factory.mktemp("trio")) as found:
        yield found.some([server.url] * 3, "--poll-seconds", "3600")
        found.check()


@pytest.fixture
def trio(shared_trio: list[Proxy], simulator: Simulator) -> list[Proxy]:
    """Three proxies that know nothing."""
    forget(shared_trio, simulator)
    return shared_trio


def forget(trio: list[Proxy], simulator: Simulator) -> None:
    """Has proxies know nothing, and the simulator have received nothing."""
    simulator.faults.clear()
    simulator.release()
    until(lambda: not simulator.waiting)
    until_state("up", trio)
    until(lambda: requests.post(f"{trio[0].url}/cache/clear", timeout=30).ok)
    until(lambda: not any(proxy.stats()["num_keys"] for proxy in trio))
    simulator.received.clear()


def until_state(state: str, proxies: Sequence[Proxy]) -> None:
    until(lambda: all(shared(proxy)["state"] == state for proxy in proxies), 30)


def unless_late(
    proxies: Sequence[Proxy], check: Callable[[], None], again: Callable[[], None] = lambda: None
) -> None:
    """Checks once more, after `again`, where Redis did not answer a proxy within its half second.
    That happens on a machine which is busy with much else; then proxies do not know of one another,
    and rightly so."""
    for is_last in (False, False, True):
        before = [proxy.log.count("no answer within") for proxy in proxies]
        try:
            check()
            return
        except AssertionError:
            after = [proxy.log.count("no answer within") for proxy in proxies]
            if is_last or after == before:
                raise
        until_state("up", proxies)
        again()


def steady(test: Callable[..., None]) -> Callable[..., None]:
    """A test of three proxies: see `unless_late`."""

    @wraps(test)
    def run(simulator: Simulator, trio: list[Proxy], **more: Any) -> None:
        unless_late(trio, lambda: test(simulator, trio, **more), lambda: forget(trio, simulator))

    return run


def shared(proxy: Proxy) -> dict[str, Any]:
    return proxy.stats()["shared"]


def asking(text: str, n: int = 1) -> dict[str, Any]:
    return {"text": text, "sampling_params": {**PARAMS, "n": n}}


def ask(proxy: Proxy, text: str, n: int = 1, seconds: float = 30, **headers: str) -> list[str]:
    """What a proxy answers to a call for n samples."""
    answer = post(proxy, "/generate", asking(text, n), timeout=seconds, headers=headers)
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


@steady
def test_each_sample_is_generated_once(simulator: Simulator, trio: list[Proxy]) -> None:
    """Of what three proxies are asked in parallel, each sample is generated once, and all have the
    same."""
    todo = calls(60, 4)
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
    until(lambda: all(map(is_idle, trio)))


def is_idle(proxy: Proxy) -> bool:
    facts = shared(proxy)
    return not (facts["leases"] or facts["waiting"] or facts["pending"])


@pytest.mark.parametrize("keeps", [True, False], ids=["appendonly", "emptied"])
def test_a_proxy_dies_and_redis_restarts(
    keeps: bool, simulator: Simulator, server: RedisServer, trio: list[Proxy], started: Started
) -> None:
    """All is answered, rightly. What is generated twice is what was asked while Redis was away, or
    was under way at the dead proxy; where Redis comes back empty, what only others had, too."""
    mortal = started.proxy(server.url)
    asked = [mortal, *trio[1:]]
    todo = calls(60, 3)
    spans: list[tuple[float, float]] = [(0.0, 0.0)] * len(todo)
    dead = threading.Event()
    logs = [len(proxy.log) for proxy in trio]

    def one(i: int) -> list[str]:
        started = time.monotonic()
        proxy = asked[i % 3]
        try:
            found = ask(trio[1] if proxy is mortal and dead.is_set() else proxy, *todo[i])
        except requests.RequestException:
            assert proxy is mortal
            found = ask(trio[1], *todo[i])
        spans[i] = (started, time.monotonic())
        return found

    def until_answered(share: float) -> None:
        until(lambda: sum(end > 0 for _, end in spans) > len(todo) * share, 60)

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(one, i) for i in range(len(todo))]
        until_answered(0.2)
        dead.set()
        killed = time.monotonic()
        mortal.stop(signal.SIGKILL)
        until_answered(0.4)
        stopped = time.monotonic()
        server.stop()
        if not keeps:
            shutil.rmtree(server.folder / "appendonlydir")
        until_answered(0.6)
        until_state("down", trio)
        server.start()
        until_state("up", trio)
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
    said = [proxy.log[length:] for proxy, length in zip(trio, logs, strict=True)]
    times = [log.count("answers are not shared until it is back") for log in said]
    assert times == [log.count("/0 is back\n") for log in said]
    if keeps and max(times) == 1:  # it was away for longer where the machine is too busy
        assert not extra - away
    assert all(count <= 2 * most[text] for text, count in extra.items())
    until(lambda: all(map(is_idle, trio)), 20)

    def all_is_as_before() -> None:
        simulator.received.clear()
        for number in range(20):
            text = f"after {number} {time.monotonic()}"
            assert ask(trio[2], text, 2) == ask(trio[1], text, 2)
        assert sum(generated(simulator).values()) == 40

    unless_late(trio, all_is_as_before)


@steady
def test_followers_of_another_proxy(simulator: Simulator, trio: list[Proxy]) -> None:
    """Equal calls at three proxies are one call upstream, and all are woken at once."""
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, trio[0], "one", 2)
        until(lambda: simulator.waiting == 1)
        others = [pool.submit(ask, proxy, "one", 2) for proxy in trio[1:]]
        until(lambda: all(shared(proxy)["waiting"] == 1 for proxy in trio[1:]))
        before = [shared(proxy)["commands"] for proxy in trio[1:]]
        simulator.release()
        assert [other.result() for other in others] == [first.result()] * 2
    assert generated(simulator) == {"one": 2}
    # Nobody asks again and again.
    assert max(shared(p)["commands"] - n for p, n in zip(trio[1:], before, strict=True)) < 20


@steady
def test_streams_follow_too(simulator: Simulator, trio: list[Proxy]) -> None:
    """Equal streams at three proxies are one call upstream."""
    body = {**asking("one"), "stream": True}
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(3) as pool:
        posts = [pool.submit(post, proxy, "/generate", body) for proxy in trio]
        until(lambda: simulator.waiting == 1)
        until(lambda: sum(shared(proxy)["waiting"] for proxy in trio) == 2)
        simulator.release()
        ends = {answer.result().content.split(b"\n\n")[-3] for answer in posts}
    assert len(ends) == 1
    assert generated(simulator) == {"one": 1}


@steady
def test_leaders_that_are_dead_and_slow(
    simulator: Simulator, trio: list[Proxy], server: RedisServer, started: Started
) -> None:
    """One that has died does not prolong its leases, and others take over once they have ended; one
    that lives keeps its own for as long as the call upstream takes."""
    mortal = started.proxy(server.url)
    simulator.faults.extend([Fault.HOLD, Fault.HOLD])
    with ThreadPoolExecutor(4) as pool, server.client() as client:
        lost = pool.submit(ask, mortal, "dead")
        until(lambda: simulator.waiting == 1)
        (mortals,) = client.keys("*:lease")
        first = pool.submit(ask, trio[1], "slow")
        until(lambda: simulator.waiting == 2)
        (living,) = (name for name in client.keys("*:lease") if name != mortals)
        second = pool.submit(ask, trio[2], "slow")
        waiting = pool.submit(ask, trio[2], "dead")
        until(lambda: shared(trio[2])["waiting"] == 2)
        mortal.stop(signal.SIGKILL)
        assert all(client.pttl(name) <= 5000 for name in (mortals, living))
        # As if so much time had passed.
        client.pexpire(mortals, 1)
        client.pexpire(living, 3000)
        assert waiting.result()
        assert lost.exception()
        until(lambda: client.pttl(living) > 3000)
        assert not second.done()
        simulator.release()
        assert first.result() == second.result()
    assert generated(simulator) == {"slow": 1, "dead": 2}


@steady
def test_a_client_that_leaves_frees_them(simulator: Simulator, trio: list[Proxy]) -> None:
    """Where a client leaves, the call of another proxy goes on at once."""
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        with trio[0].connect() as client:
            client.sendall(raw("/generate", asking("one")))
            until(lambda: simulator.waiting == 1)
            waiting = pool.submit(ask, trio[1], "one")
            until(lambda: shared(trio[1])["waiting"] == 1)
        assert waiting.result()


# What one changes, the others see


@steady
def test_clear(simulator: Simulator, trio: list[Proxy]) -> None:
    """What one proxy clears, of all models or of one, is gone for all, and no more."""
    old = [ask(proxy, "one", 3) for proxy in trio]
    assert old == [old[0]] * 3
    simulator.faults.append(Fault.HOLD)
    with ThreadPoolExecutor(1) as pool:
        # Begun before the clear, by who does not know of it yet: not stored by anybody.
        late = pool.submit(ask, trio[2], "late")
        until(lambda: simulator.waiting == 1)
        answer = requests.post(f"{trio[0].url}/cache/clear", timeout=30)
        assert answer.status_code == 200
        until(lambda: not any(proxy.stats()["num_keys"] for proxy in trio))
        simulator.release()
        text = late.result()
    assert ask(trio[1], "late") != text
    new = [ask(proxy, "one", 3) for proxy in trio]
    assert new == [new[0]] * 3
    assert not set(new[0]) & set(old[0])
    requests.post(f"{trio[0].url}/cache/clear?model=other", timeout=30)
    ask(trio[0], "two")
    assert [ask(proxy, "one", 3) for proxy in trio] == new
    assert requests.post(f"{trio[0].url}/cache/clear?model=current", timeout=30).ok
    until(lambda: not any(proxy.stats()["num_keys"] for proxy in trio))


@steady
def test_replacement(simulator: Simulator, trio: list[Proxy]) -> None:
    """What a client has refreshed is what all others get."""
    old = [ask(proxy, "one", 2) for proxy in trio]
    new = ask(trio[0], "one", 2, **{"Cache-Control": "no-cache"})
    assert not set(new) & set(old[0])
    until(lambda: [ask(proxy, "one", 2) for proxy in trio] == [new] * 3)
    assert generated(simulator) == {"one": 4}


@steady
def test_a_clock_that_runs_ahead(
    simulator: Simulator, trio: list[Proxy], server: RedisServer
) -> None:
    """What a proxy has stored whose clock is an hour ahead can be replaced at once."""
    old = ask(trio[0], "one", 2)
    until(lambda: not shared(trio[0])["pending"])
    with server.client() as client:
        (name,) = (key for key in client.keys("*}:[0-9]*") if client.type(key) == b"list")
        for place, one in enumerate(client.lrange(name, 0, -1)):
            dialect, sample = element.decode(one)
            later = sample._replace(stored_at=sample.stored_at + 3600)
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


@steady
def test_model_change(
    simulator: Simulator, trio: list[Proxy], server: RedisServer, started: Started
) -> None:
    """A change of the model that one proxy sees is one for all, and for those that come later."""
    old = [ask(proxy, "one") for proxy in trio]
    assert old == [old[0]] * 3
    update = f"{trio[0].url}/update_weights_from_tensor"
    assert requests.post(update, json={"serialized_named_tensors": ["x"]}, timeout=30).ok
    until(lambda: ask(trio[1], "one") != old[0])
    until(lambda: len({proxy.info()["model"]["fingerprint"] for proxy in trio}) == 1)
    ask(trio[0], "two")
    until(lambda: ask(trio[0], "two") == ask(trio[1], "two") == ask(trio[2], "two"))
    # One that comes later knows of it as well.
    late = started.proxy(server.url)
    assert ask(late, "two") == ask(trio[0], "two")
    assert late.info()["model"]["fingerprint"] == trio[0].info()["model"]["fingerprint"]


# Redis in trouble


def test_frozen(simulator: Simulator, trio: list[Proxy], server: RedisServer) -> None:
    """Nothing waits for a Redis that does not answer, and all is made up for once it does."""
    old = ask(trio[0], "one")
    trio[0].stats()  # when the answer is stored
    key = requests.get(f"{trio[0].url}/cache/entries", timeout=30).json()["entries"][0]["key"]
    logs = [len(proxy.log) for proxy in trio]
    server.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(ask, trio[i % 3], f"new {i}", 1, 10) for i in range(24)]
            assert all(len(one.result()) == 1 for one in found)
        assert ask(trio[0], "one") == old
        refused = requests.delete(f"{trio[0].url}/cache/entries/{key}", timeout=30)
        assert (refused.status_code, ask(trio[0], "one")) == (503, old)
        update = f"{trio[0].url}/update_weights_from_tensor"
        assert requests.post(update, json={"serialized_named_tensors": ["x"]}, timeout=30).ok
        assert requests.post(f"{trio[0].url}/cache/clear", timeout=30).status_code == 500
        until_state("down", trio)
    finally:
        server.signal(signal.SIGCONT)
    until_state("up", trio)
    until(lambda: all(map(is_idle, trio)), 20)
    for proxy, length in zip(trio, logs, strict=True):
        log = proxy.log[length:]
        assert 0 < log.count("no answer within") == log.count("/0 is back\n"), log
    until(lambda: len({proxy.info()["model"]["fingerprint"] for proxy in trio}) == 1)
    until(lambda: not trio[2].stats()["num_keys"])

    def is_made_up_for() -> None:
        again = ask(trio[1], "one")
        assert again != old
        assert ask(trio[2], "one") == again

    unless_late(trio, is_made_up_for)


@steady
def test_full(simulator: Simulator, trio: list[Proxy], server: RedisServer) -> None:
    """What is there is still read while Redis takes no more, nothing waits for it, and what could
    not be shared then is in the end."""
    old = ask(trio[0], "one")
    until(lambda: all(map(is_idle, trio)))
    logs = [len(proxy.log) for proxy in trio]
    with server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            assert ask(trio[1], "one") == old
            for number in range(10):
                ask(trio[number % 2], f"new {number}", 1, 10)
            until(lambda: all(shared(proxy)["is_full"] for proxy in trio[:2]))
            assert ask(trio[0], "new 0", 2, 10)
        finally:
            client.config_set("maxmemory", 0)
    until(lambda: all(map(is_idle, trio)), 20)
    for proxy, length in zip(trio[:2], logs, strict=False):
        for said in ("takes nothing more", "has room again"):
            assert proxy.log[length:].count(said) == 1
    assert ask(trio[1], "new 0", 2) == ask(trio[0], "new 0", 2)


def test_ways_to_it(simulator: Simulator, started: Started, tmp_path: Path) -> None:
    """A server is the same by its port, its socket and TLS. A proxy that it does not let in, or
    that does not trust it, or finds none, serves without it. No password is shown."""
    port, pem = free_port(), str(certificate(tmp_path))
    server = started.redis(
        "--requirepass", "secret/of@redis", "--unixsocket", "redis.sock",
        "--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem,
        "--tls-ca-cert-file", pem, "--tls-auth-clients", "no",
    )  # fmt: skip
    plain, secret = f"127.0.0.1:{server.port}/0", "secret%2Fof%40redis"
    trusting = f"rediss://:{secret}@127.0.0.1:{port}/0"
    friends = started.some(
        [
            f"redis://:{secret}@{plain}",
            f"unix://{server.folder}/redis.sock?password={secret}",
            f"{trusting}?ssl_ca_certs={pem}",
        ]
    )
    everything_shared(simulator, friends)
    nowhere = f"redis://:{secret}@127.0.0.1:{free_port()}/0"
    strangers = started.some([trusting, f"redis://:wrong-secret@{plain}", nowhere], up=False)
    for proxy in strangers:
        assert ask(proxy, "one") == ask(proxy, "one")
        until(lambda proxy=proxy: "answers are not shared" in proxy.log)
        assert shared(proxy)["state"] == "down"
        assert proxy.log.count("answers are not shared") == 1
    said = strangers[0].log
    assert "CERTIFICATE_VERIFY_FAILED" in said or "no answer within" in said, said
    for proxy in (*friends, *strangers):
        info = requests.get(f"{proxy.url}/cache/info", timeout=30)
        assert "secret" not in info.text + proxy.log + proxy.banner
    assert strangers[2].stop() == 0


def test_cluster(simulator: Simulator, started: Started) -> None:
    """All nodes of a cluster are used, and what is on one that fails is at hand or generated."""
    count = 3
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
    pair = started.some([nodes[0].url.replace("redis:", "redis+cluster:")] * 2)
    everything_shared(simulator, pair)
    texts: list[list[str]] = []

    def ask_both() -> None:
        texts[:] = [ask(pair[i % 2], f"prompt {i}") for i in range(30)]
        assert [ask(pair[1 - i % 2], f"prompt {i}") for i in range(30)] == texts

    unless_late(pair, ask_both, lambda: clear(pair))
    for node in nodes:
        with node.client() as client:
            assert client.dbsize(), "a node has nothing"
    nodes[1].stop()
    assert [ask(pair[1 - i % 2], f"prompt {i}") for i in range(30)] == texts
    assert all(ask(pair[i % 2], f"new {i}") for i in range(30))


def test_sentinel(simulator: Simulator, started: Started) -> None:
    """The master that the Sentinels name is used, and the next one when it fails."""
    server = started.redis()
    port = free_port()
    config = server.folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {server.port} 1\n"
        "sentinel down-after-milliseconds main 1000\n"
    )
    replica = started.redis("--replicaof", f"127.0.0.1 {server.port}")
    with server.client() as client:
        until(lambda: client.info("replication").get("slave0", {}).get("state") == "online", 30)
    url = f"redis+sentinel://127.0.0.1:{port}/main/0"
    with running_redis(server.folder, str(config), "--sentinel", port=port):
        pair = started.some([url] * 2)
        with redis.Redis(port=port) as sentinel:
            until(lambda: sentinel.execute_command("SENTINEL", "REPLICAS", "main"), 30)
            texts = [ask(pair[i % 2], f"prompt {i}") for i in range(10)]
            until(lambda: all(map(is_idle, pair)))
            backs = [proxy.log.count(" is back") for proxy in pair]
            with server.client() as client:
                # A write that the replica has: it has those before, too.
                client.set("last", 1)
                assert client.wait(1, 30_000) == 1
            server.stop()
            assert ask(pair[0], "meanwhile")
            until(lambda: sentinel.sentinel_get_master_addr_by_name("main")[1] == replica.port, 30)
        # Each has found the former master gone, and the next one.
        until(
            lambda: all(p.log.count(" is back") > n for p, n in zip(pair, backs, strict=True)), 30
        )
        until_state("up", pair)
        lost = sum(proxy.log.count("answers are not shared until") for proxy in pair)
        found = [ask(pair[1 - i % 2], f"prompt {i}") for i in range(10)]
        # On a busy machine the master may take too long, and then it is left alone.
        now = sum(proxy.log.count("answers are not shared until") for proxy in pair)
        assert found == texts or now > lost, [proxy.log for proxy in pair]
        everything_shared(simulator, pair)


def clear(proxies: Sequence[Proxy]) -> None:
    until(lambda: requests.post(f"{proxies[0].url}/cache/clear", timeout=30).ok)
    until(lambda: not any(proxy.stats()["num_keys"] for proxy in proxies))


def everything_shared(simulator: Simulator, proxies: list[Proxy]) -> None:
    """Proxies share samples, leases of several keys at once, runs, and clears."""

    def check() -> None:
        run = f"/run/at-{time.monotonic()}/generate"
        drawn = [post(proxies[k % 2], run, asking("drawn")) for k in range(4)]
        assert [answer.headers["X-Cache-Sample"] for answer in drawn] == ["0", "1", "2", "3"]
        old = ask(proxies[0], "one", 2)
        for n, proxy in enumerate(proxies, 2):
            assert ask(proxy, "one", n)[:2] == old
        simulator.received.clear()
        simulator.faults.append(Fault.HOLD)
        with ThreadPoolExecutor(2) as pool:
            batch = {"text": ["a", "b", "c"], "sampling_params": PARAMS}
            posts = [pool.submit(post, proxy, "/generate", batch) for proxy in proxies[-2:]]
            try:
                until(lambda: simulator.waiting == 1)
                until(lambda: sum(shared(proxy)["waiting"] for proxy in proxies) == 1)
            finally:
                simulator.release()
            texts = [[one["text"] for one in answer.result().json()] for answer in posts]
        assert texts[0] == texts[1]
        assert sum(len(b["text"]) for b in sampled(simulator) if isinstance(b["text"], list)) == 3
        clear(proxies)
        assert ask(proxies[1], "one", 2) != old

    def forgotten() -> None:
        simulator.faults.clear()
        clear(proxies)

    unless_late(proxies, check, forgotten)


# A folder beside it


@steady
def test_folder(
    simulator: Simulator, trio: list[Proxy], server: RedisServer, started: Started, tmp_path: Path
) -> None:
    """A folder has what was generated here and what was brought, without Redis as with it. What was
    cleared or replaced while it was closed is not there when it opens."""
    folder = ("--cache-path", str(tmp_path / f"cache-{time.monotonic()}"))
    other, proxy = trio[0], started.proxy(server.url, *folder)
    texts = [ask(other, "one", 2), ask(proxy, "two", 2)]
    assert ask(proxy, "one", 3)[:2] == texts[0]
    assert ask(other, "two", 3)[:2] == texts[1]
    assert ask(proxy, "two", 3) == ask(other, "two", 3)
    until(lambda: "shared" in (Path(folder[1]) / "state.json").read_text())
    assert proxy.stop() == 0

    proxy = started.proxy(f"redis://127.0.0.1:{free_port()}/0", *folder, up=False)
    asked = len(sampled(simulator))
    assert ask(proxy, "one", 2) == texts[0]
    assert ask(proxy, "two", 3)[:2] == texts[1]
    assert len(sampled(simulator)) == asked
    assert proxy.stop() == 0

    new = ask(other, "one", 2, **{"Cache-Control": "no-cache"})
    until(lambda: is_idle(other))
    proxy = started.proxy(server.url, *folder)
    assert ask(proxy, "one", 2) == new != texts[0]
    assert proxy.stop() == 0

    clear(trio)
    proxy = started.proxy(server.url, *folder)
    assert proxy.stats()["num_keys"] == 0
    assert ask(proxy, "one", 2) not in (texts[0], new)


@steady
def test_round_trips(simulator: Simulator, trio: list[Proxy]) -> None:
    """A hit costs none, a miss two: one to look and claim, one to push and let go; what another
    proxy has is one."""

    wanted = {(0, 1): 3, (0, 1, "again"): 0, (1, 1): 1, (1, 1, "again"): 0, (1, 2): 3}
    least = dict.fromkeys(wanted, 99)
    numbers = itertools.count()

    def is_seen() -> bool:
        """Keeping up with the others costs some, twice a second: the least counts."""
        text = f"prompt {next(numbers)}"
        for case in wanted:
            proxy, n = trio[case[0]], case[1]
            before = shared(proxy)["commands"]
            ask(proxy, text, n)
            until(lambda proxy=proxy: is_idle(proxy))
            least[case] = min(least[case], shared(proxy)["commands"] - before)
        return all(least[case] <= count for case, count in wanted.items())

    until(is_seen)
    assert least == wanted
