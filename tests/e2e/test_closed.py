"""What upstream has closed is closed here, and nobody who is refused, or slow, holds up others."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import GENERATE, PARAMS, post
from tests.hearing import Answering, Upstream, serving
from tests.simulator import Profile, Simulator, is_probe, running
from tests.tables import each

INFO = {"model_path": "m", "weight_version": "1"}
SERVER = {"random_seed": 1, "version": "0.5.23"}

Says = Callable[[Mapping[str, str], Any], int]
"""The status of a call with these header fields and this body; probes are calls, too."""


class Guarded(Upstream):
    """A server that answers as it is told to."""

    def __init__(self, says: Says) -> None:
        super().__init__(_Handler)
        self.says = says
        self.may_inform = threading.Event()
        self.may_inform.set()
        self.generated = 0


class _Handler(Answering):
    server: Guarded

    def do_GET(self) -> None:
        self.server.may_inform.wait(60)
        documents = {"/model_info": INFO, "/server_info": SERVER}
        self.reply(200 if self.path in documents else 404, documents.get(self.path, {}))

    def do_POST(self) -> None:
        body = self.body()
        status = self.server.says(self.headers, json.loads(body)) if self.path == GENERATE else 200
        if status != 200:
            self.reply(status, {"error": "no"})
        elif is_probe(body):
            self.reply(200, [])
        else:
            self.server.generated += 1
            meta = {
                "id": "x", "finish_reason": {"type": "stop"}, "prompt_tokens": 1,
                "completion_tokens": 1, "weight_version": "1",
            }  # fmt: skip
            self.reply(200, {"text": "said", "output_ids": [1], "meta_info": meta})


def only(name: str, value: str, status: int = 401) -> Says:
    """Calls with this header field are answered; others have that status."""
    return lambda fields, _: 200 if fields.get(name) == value else status


@contextmanager
def guarded(says: Says) -> Iterator[Guarded]:
    with serving(Guarded(says)) as upstream:
        yield upstream
        upstream.may_inform.set()


def call(
    proxy: Proxy, text: str = "a", headers: Mapping[str, str] | None = None, **more: Any
) -> str:
    """What became of a call: its status, and how much of it came from the store."""
    body = {"text": text, "sampling_params": PARAMS, **more}
    answer = post(proxy, GENERATE, body, headers=headers)
    return f"{answer.status_code} {answer.headers['X-Cache']}"


def stored(proxy: Proxy, count: int) -> None:
    until(lambda: proxy.stats()["total_responses"] == count)


@pytest.mark.one_way
def test_what_it_tells_of_itself_is_no_key(start_proxy: StartProxy) -> None:
    """A server that tells anybody its model, and lets only some generate, is not open."""
    with guarded(only("Authorization", "Bearer k")) as upstream:
        proxy = start_proxy(upstream.url)
        key = {"Authorization": "Bearer k"}
        assert [call(proxy, headers=key), call(proxy)] == ["200 MISS", "401 BYPASS"]
        stored(proxy, 1)
        assert [call(proxy, headers=key), call(proxy)] == ["200 HIT", "401 BYPASS"]
        assert call(proxy, headers={"Authorization": "Bearer x"}) == "401 BYPASS"


@pytest.mark.one_way
@pytest.mark.parametrize("status", [400, 404, 422, 429, 503])
def test_odd_answers_open_nothing(status: int, start_proxy: StartProxy) -> None:
    """Whatever a server says to a client without a key that is not a 200, it gets no hit."""
    with guarded(only("Authorization", "Bearer k", status)) as upstream:
        proxy = start_proxy(upstream.url)
        assert call(proxy, headers={"Authorization": "Bearer k"}) == "200 MISS"
        stored(proxy, 1)
        assert call(proxy) == f"{status} BYPASS"


def test_another_header(start_proxy: StartProxy) -> None:
    """A key in a header that is not known as one admits nobody, not even its owner, unless it is
    named; then it is a key like any other."""
    with guarded(only("X-Odd", "k")) as upstream:
        proxy = start_proxy(upstream.url)
        owner = {"X-Odd": "k"}
        assert [call(proxy, headers=owner) for _ in range(2)] == ["200 BYPASS"] * 2
        assert call(proxy) == "401 BYPASS"
        assert proxy.stats()["total_responses"] == 0
        assert "--credential-header" in proxy.log
        proxy.stop()
        proxy = start_proxy(upstream.url, "--credential-header", "X-Odd")
        assert call(proxy, headers=owner) == "200 MISS"
        stored(proxy, 1)
        for headers, kind in (
            (owner, "200 HIT"),
            (None, "401 BYPASS"),
            ({"X-Odd": "x"}, "401 BYPASS"),
        ):
            assert call(proxy, headers=headers) == kind


ROUTED = ("model", "X-Model-Id", "X-Team")
"""The field of the body, a header by which gateways are known to choose, and one that is named."""


@pytest.mark.one_way
@pytest.mark.parametrize("name", ROUTED)
def test_a_key_for_one_destination(name: str, start_proxy: StartProxy) -> None:
    """A key, or a client without one, that a gateway lets ask for one destination gets no hits of
    another, where a header or the model chooses; where it is let in, it gets its hits."""
    may = {"Bearer all": "abc", "Bearer a": "a", "": "c"}

    def says(fields: Mapping[str, str], body: Any) -> int:
        chosen = body.get(name) if name == "model" else fields.get(name)
        return 200 if (chosen or "none") in may[fields.get("Authorization", "")] else 403

    def asked(proxy: Proxy, chosen: str, key: str) -> str:
        shown = {"Authorization": key} if key else {}
        if name == "model":
            return call(proxy, headers=shown, model=chosen)
        return call(proxy, headers={name: chosen, **shown})

    with guarded(says) as upstream:
        proxy = start_proxy(upstream.url, "--key-header", "X-Team", "--poll-seconds", "0.1")
        for count, chosen in enumerate("abc"):
            assert asked(proxy, chosen, "Bearer all") == "200 MISS"
            stored(proxy, count + 1)
        for _ in range(2):
            for key, chosen in (("Bearer a", "a"), ("Bearer all", "b"), ("", "c")):
                assert asked(proxy, chosen, key) == "200 HIT"
            for key, chosen in (("Bearer a", "b"), ("", "a")):
                assert asked(proxy, chosen, key) == "403 BYPASS"
        assert upstream.generated == 3


def test_a_header_for_the_proxy_alone(start_proxy: StartProxy) -> None:
    """A header that `Connection` names does not reach upstream: what it answers without it is not
    stored as an answer with it."""

    with guarded(lambda *_: 200) as upstream:
        proxy = start_proxy(upstream.url)
        chosen = {"X-Model-Id": "large"}
        named = {**chosen, "Connection": "keep-alive, X-Model-Id"}
        assert [call(proxy, headers=named) for _ in range(2)] == ["200 BYPASS"] * 2
        assert call(proxy, headers=chosen) == "200 MISS"
        stored(proxy, 1)
        assert call(proxy, headers={**chosen, "Connection": "Keep-Alive"}) == "200 HIT"


def test_what_was_not_read_lets_nobody_in(start_proxy: StartProxy) -> None:
    """A call that is passed on unread may have named any model: that it was answered says nothing
    of who may ask without naming one."""

    def says(fields: Mapping[str, str], body: Any) -> int:
        is_owner = fields.get("Authorization") == "Bearer all"
        return 200 if is_owner or body.get("model") == "a" else 403

    with guarded(says) as upstream:
        proxy = start_proxy(upstream.url)
        owner, other = {"Authorization": "Bearer all"}, {"Authorization": "Bearer a"}
        assert call(proxy, headers=owner) == "200 MISS"
        stored(proxy, 1)
        from_a_page = {**other, "Origin": "http://page"}
        assert call(proxy, headers=from_a_page, model="a") == "200 BYPASS"
        assert call(proxy, headers=other) == "403 BYPASS"


@pytest.mark.one_way
def test_a_rotating_cookie(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The cookie of a load balancer, another one with each answer, makes nobody a stranger."""
    proxy = start_proxy(simulator.url)
    kinds = [call(proxy, headers={"Cookie": f"lb={k}"}) for k in range(4)]
    assert kinds == ["200 MISS"] + ["200 HIT"] * 3
    assert len(simulator.probes) == 1


def test_a_crowd_without_keys(start_proxy: StartProxy) -> None:
    """Any number of clients that are refused get upstream's answer; the proxy goes on, and ends
    when it is told to."""
    with running(Profile(api_key="k")) as upstream:
        proxy = start_proxy(upstream.url)
        with ThreadPoolExecutor(16) as pool:
            kinds = list(pool.map(lambda k: call(proxy, f"p {k % 4}"), range(80)))
        assert set(kinds) == {"401 BYPASS"}
        assert call(proxy, headers={"Authorization": "Bearer k"}) == "200 MISS"
        assert proxy.stop(signal.SIGTERM) == 0


@each("is_silent", [False, True])
def test_hits_do_not_wait(is_silent: bool, start_proxy: StartProxy, tmp_path: Path) -> None:
    """While upstream is slow to say who it is, or silent, what is stored is given, and the proxy's
    own routes answer: nothing of that waits for upstream."""

    with guarded(lambda *_: 200) as upstream:
        folder = tmp_path / str(is_silent)
        proxy = start_proxy(upstream.url, "--poll-seconds", "0.1", cache=folder)
        assert call(proxy) == "200 MISS"
        stored(proxy, 1)
        assert call(proxy) == "200 HIT"
        upstream.may_inform.clear()

        def longest() -> float:
            """How long somebody waited, among those who came in a while."""
            end, found, count = time.monotonic() + 0.6, 0.0, 0
            while time.monotonic() < end:
                began = time.monotonic()
                assert call(proxy) == "200 HIT"
                assert requests.get(f"{proxy.url}/health", timeout=30).status_code == 200
                proxy.stats()
                found, count = max(found, time.monotonic() - began), count + 1
                if not is_silent and count % 20 == 0:
                    upstream.may_inform.set()
                    threading.Event().wait(0.2)
                    upstream.may_inform.clear()
            return found

        until(lambda: longest() < 1.0)  # at once, unless the machine is busy with much else
        # A call that is not stored is answered as well, and so are equal ones.
        with ThreadPoolExecutor(4) as pool:
            kinds = sorted(pool.map(lambda _: call(proxy, "new"), range(4)))
        assert kinds[-1] == "200 MISS"
        assert set(kinds[:-1]) <= {"200 COLLAPSED", "200 HIT"}


UPDATE = b"POST /update_weights_from_disk HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"


def send(proxy: Proxy, data: bytes) -> socket.socket:
    client = proxy.connect(30)
    client.sendall(data)
    return client


def test_updates_that_change_nothing(start_proxy: StartProxy) -> None:
    """A stranger's update of the weights that is refused, hung up, held open, or comes while
    upstream is down, empties nothing and stops nothing: what is stored is given, and what comes is
    stored."""
    key = {"Authorization": "Bearer k"}
    with running(Profile(api_key="k")) as upstream:
        proxy = start_proxy(upstream.url, "--poll-seconds", "0.1")
        assert call(proxy, headers=key) == "200 MISS"
        stored(proxy, 1)
        held = send(proxy, UPDATE + b"Content-Length: 100\r\n\r\n{")
        for _ in range(2):  # head and a part of the body, and the client is gone
            send(proxy, UPDATE + b"Content-Length: 100\r\n\r\n{").close()
        send(proxy, UPDATE + b"Content-Length: 2\r\n\r\n{}").close()
        with ThreadPoolExecutor(2) as pool:
            refused = pool.map(lambda _: post(proxy, "/update_weights_from_disk", {}), range(2))
            assert [answer.status_code for answer in refused] == [401, 401]
        assert call(proxy, headers=key) == "200 HIT"
        assert call(proxy, "b", headers=key) == "200 MISS"
        stored(proxy, 2)
        held.close()
        until(lambda: json.loads((proxy_state(proxy)).read_bytes())["unsettled"] is False)
        upstream.down()
        assert post(proxy, "/update_weights_from_disk", {}).status_code == 502
        upstream.up()
        until(lambda: "was restarted" in proxy.log)
        until(lambda: call(proxy, headers=key) == "200 HIT")
        assert call(proxy, "b", headers=key) == "200 HIT"
        assert call(proxy, "c", headers=key) == "200 MISS"
        stored(proxy, 3)
        assert proxy.stats()["not_stored"] == {}


def proxy_state(proxy: Proxy) -> Path:
    return Path(proxy.stats()["cache_file"]).with_name("state.json")


@pytest.mark.one_way
def test_state_that_makes_no_sense(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The proxy starts, names the file that it has moved aside, and gives nothing that may be of
    other weights."""
    proxy = start_proxy(simulator.url)
    assert call(proxy) == "200 MISS"
    stored(proxy, 1)
    state = proxy_state(proxy)
    assert proxy.stop() == 0
    state.write_text(json.dumps({**json.loads(state.read_text()), "epochs": {"last": "x"}}))
    again = start_proxy(simulator.url)
    assert "state.json" in again.log
    assert [call(again), call(again)] == ["200 MISS", "200 HIT"]


@pytest.mark.one_way
@pytest.mark.parametrize(("restart", "kind"), [("same", "HIT"), ("new", "MISS")])
def test_restart(restart: str, kind: str, simulator: Simulator, start_proxy: StartProxy) -> None:
    """What a restarted server is taken for is said by --restart; the log says once what was
    assumed."""
    proxy = start_proxy(simulator.url, "--restart", restart, "--poll-seconds", "0.1")
    assert call(proxy) == "200 MISS"
    stored(proxy, 1)
    before = proxy.info()["model"]["epochs"]
    simulator.restart()
    if restart == "same":
        until(lambda: "was restarted" in proxy.log)
    else:
        until(lambda: proxy.info()["model"]["epochs"] != before)
    assert call(proxy) == f"200 {kind}"
    assert proxy.log.count("was restarted") == (restart == "same")
