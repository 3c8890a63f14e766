"""Several servers behind one URL: what nobody can tell whose it is is not stored."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, cache_status, until
from tests.e2e.calls import CHAT, FORMS, GENERATE, greedy, post
from tests.hearing import Answering, Upstream, serving
from tests.servers.stand_in import recorded
from tests.simulator import Profile, Simulator, running


class Balancer(Upstream):
    """Sends each request to the next of these servers; as a gateway, it answers some of them
    itself, as the recorded one does."""

    def __init__(self, servers: list[Simulator], *, is_gateway: bool) -> None:
        self.servers = servers
        self.turns = itertools.cycle(servers)
        self.lock = threading.Lock()
        self.about: dict[str, Any] = {}
        if is_gateway:
            said = recorded("gateway")
            self.about = {path: json.loads(said[path]["response"]["body"])
                          for path in ("/get_server_info", "/workers")}  # fmt: skip
            (like,) = self.about["/workers"]["workers"]
            self.about["/workers"]["workers"] = [
                {**like, "url": server.url, "metadata": {
                    **like["metadata"], "model_path": server.profile.model}}
                for server in servers
            ]  # fmt: skip
        super().__init__(_Handler)

    def next(self, path: str) -> Simulator | None:
        """The server that is asked; None where that route is not there."""
        if not self.about:
            with self.lock:
                return next(self.turns)
        if path in ("/model_info", "/server_info"):
            return None
        if path == "/get_model_info":
            return self.servers[0]
        with self.lock:
            return next(self.turns)


class _Handler(Answering):
    server: Balancer

    def _answer(self) -> None:
        data = self.body()
        if self.path in self.server.about:
            self.reply(200, self.server.about[self.path])
            return
        server = self.server.next(self.path)
        if server is None:
            self.reply(404, b"")
            return
        kind = {"Content-Type": "application/json"}
        answer = requests.request(
            self.command, server.url + self.path, data=data, headers=kind, timeout=30
        )
        self.reply(answer.status_code, answer.content, answer.headers["content-type"])

    do_GET = do_POST = _answer


@contextmanager
def balancing(*profiles: Profile, is_gateway: bool = False) -> Iterator[Balancer]:
    with ExitStack() as stack:
        servers = [stack.enter_context(running(profile)) for profile in profiles]
        yield stack.enter_context(serving(Balancer(servers, is_gateway=is_gateway)))


def stored(proxy: Proxy) -> int:
    found: int = proxy.stats()["total_responses"]
    return found


ONE = Profile(model="one", served_model_name="m")
OTHER = Profile(model="other", served_model_name="m", seed=5)


@pytest.mark.parametrize("profiles", [(ONE, OTHER), (ONE, ONE, OTHER)], ids=["two", "three"])
def test_a_balancer_of_requests(profiles: tuple[Profile, ...], start_proxy: StartProxy) -> None:
    """Behind a balancer that sends each request elsewhere, nothing is stored as soon as it is seen,
    and then there is nothing to be given."""
    with balancing(*profiles) as balancer:
        proxy = start_proxy(balancer.url, "--poll-seconds", "0.2")
        numbers = itertools.count()

        def is_seen() -> bool:
            post(proxy, GENERATE, greedy(GENERATE, f"before {next(numbers)}"))
            return "several-servers" in proxy.stats()["not_stored"]

        until(is_seen)
        before = stored(proxy)
        for path in (GENERATE, CHAT):
            for form in FORMS.values():
                for k in range(3):
                    answer = post(proxy, path, greedy(path, f"after {k}", **form))
                    assert (answer.status_code, answer.headers["X-Cache"]) == (200, "MISS")
                    proxy.stats()  # until then equal calls have what has just come
        assert stored(proxy) == before


def test_workers_of_one_model(start_proxy: StartProxy) -> None:
    """What one worker of a gateway has generated serves calls that others would have answered."""
    with balancing(ONE, ONE, is_gateway=True) as gateway:
        proxy = start_proxy(gateway.url)
        for path in (GENERATE, CHAT):
            for form in FORMS.values():
                body = greedy(path, "a", **form)
                kinds = []
                for _ in range(4):
                    kinds.append(post(proxy, path, body).headers["X-Cache"])
                    proxy.stats()
                assert kinds == ["MISS", "HIT", "HIT", "HIT"]


def test_workers_of_two_models(start_proxy: StartProxy) -> None:
    """Two models of one name are nobody's: all is passed on."""
    with balancing(ONE, OTHER, is_gateway=True) as gateway:
        proxy = start_proxy(gateway.url)
        for _ in range(2):
            answer = post(proxy, CHAT, greedy(CHAT, "a"))
            assert cache_status(answer.headers) == "sglang-cached; fwd=bypass; detail=no-model"


def test_workers_whose_weights_differ(start_proxy: StartProxy) -> None:
    """An answer that names the weights of another worker than the one that was asked about them is
    not stored; nor is one that names none, if weights have names."""
    first, second = (Profile(model="one", served_model_name="m", weight_version=version)
                     for version in ("v1", "v2"))  # fmt: skip
    with balancing(first, second, is_gateway=True) as gateway:
        proxy = start_proxy(gateway.url)
        reasons = set()
        for k in range(6):
            for form in FORMS.values():
                post(proxy, CHAT, greedy(CHAT, f"{k}", **form))
                reasons |= set(proxy.stats()["not_stored"])
        assert reasons == {"other-weights", "unconfirmed"}
        models = [server.profile.weight_version for server in gateway.servers]
        assert models == ["v1", "v2"]
