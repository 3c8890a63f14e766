"""Who may ask: upstreams with keys, caches of one tenant, and what is told to nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, cache_status, until
from tests.e2e import calls
from tests.e2e.calls import (
    BODIES,
    CALLS,
    CHAT,
    FORMS,
    GENERATE,
    asking,
    heard,
    post,
    sampled,
    status_of,
)
from tests.simulator import Fault, Profile, Simulator, running

ONE, TWO, ADMIN = "sk-one-secret", "sk-two-secret", "sk-admin-secret"
BYPASS = ("BYPASS", "sglang-cached; fwd=bypass; fwd-status=401; detail=unauthorized")

logging.getLogger("tornado.access").disabled = True


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def ask(proxy: Proxy, path: str, body: Any, key: str | None, **headers: str) -> requests.Response:
    return calls.ask(proxy, path, body, {**bearer(key), **headers})


def probes(simulator: Simulator) -> list[str]:
    """What upstream was asked besides the calls for samples."""
    return [r.path for r in simulator.received if r.path not in BODIES]


@pytest.fixture
def locked() -> Iterator[Simulator]:
    """An upstream with two keys, and one for its administrator."""
    profile = Profile(api_key=f"{ONE},{TWO}", admin_api_key=ADMIN)
    with running(profile) as upstream:
        yield upstream


@pytest.fixture
def behind(locked: Simulator, start_proxy: StartProxy) -> Proxy:
    """A proxy that does not poll while a test counts requests."""
    return start_proxy(locked.url, "--poll-seconds", "3600")


def test_who_hits(locked: Simulator, behind: Proxy) -> None:
    """What one key has stored is there for another that upstream accepts, and for nobody else;
    a refusal is upstream's own."""
    stored = {path: heard(path, ask(behind, path, asking(path), ONE)) for path in BODIES}
    for path, form in CALLS:
        for key in (None, "sk-wrong", "", ONE.upper(), f"{ONE},{TWO}", ADMIN):
            refused = ask(behind, path, asking(path, **form), key)
            direct = requests.post(
                locked.url + path, json=asking(path, **form), headers=bearer(key), timeout=30
            )
            assert (refused.status_code, refused.content) == (401, direct.content), key
            assert status_of(refused) == BYPASS
            ours = {"Cache-Status", "X-Cache", "X-Request-Id", "Date"}
            fields = {name: refused.headers[name] for name in refused.headers if name not in ours}
            assert fields == {n: v for n, v in direct.headers.items() if n not in ours}
        for key in (TWO, ONE):
            hit = ask(behind, path, asking(path, **form), key)
            assert hit.headers["X-Cache"] == "HIT"
            assert heard(path, hit) == stored[path]
    assert behind.stats()["bypasses"] == {"unauthorized": 6 * len(CALLS)}
    assert behind.stats()["total_responses"] == len(BODIES)


def test_other_fields(locked: Simulator, behind: Proxy) -> None:
    """A key beside another header field, or in another spelling, is shown to upstream for itself;
    one in a field that upstream does not read opens nothing."""
    ask(behind, GENERATE, asking(GENERATE), ONE)
    for headers, status in (
        ({"Authorization": f"bearer {ONE}"}, 200),
        ({"Authorization": f"Basic {ONE}"}, 401),
        ({"X-Api-Key": ONE}, 401),
        ({"Api-Key": ONE}, 401),
        ({"Cookie": f"key={ONE}"}, 401),
        ({"Proxy-Authorization": f"Bearer {ONE}"}, 401),
        ({"Authorization": f"Bearer {ONE}", "Cookie": "a=b"}, 200),
    ):
        answer = post(behind, GENERATE, asking(GENERATE), headers=headers)
        assert answer.status_code == status, headers
        assert answer.headers["X-Cache"] == ("HIT" if status == 200 else "BYPASS")
    assert len(sampled(locked)) == 1 + 5  # the first, and those that were refused


@pytest.mark.one_way
def test_one_question(locked: Simulator, behind: Proxy) -> None:
    """A key is tried once, with a call that generates nothing, before it gets its first hit."""
    ask(behind, GENERATE, asking(GENERATE), ONE)
    locked.received.clear()
    kinds = [ask(behind, GENERATE, asking(GENERATE), TWO).headers["X-Cache"] for _ in range(4)]
    assert kinds == ["HIT"] * 4
    assert sampled(locked) == []
    shown = [probe.headers["authorization"] for probe in locked.probes]
    assert shown.count(f"Bearer {TWO}") == 1


def test_a_key_that_is_withdrawn(locked: Simulator, behind: Proxy) -> None:
    """When upstream says 401 to a key, its hits are over, too; the other's are not."""
    for key in (ONE, TWO):
        assert ask(behind, GENERATE, asking(GENERATE), key).status_code == 200
    locked.become(api_key=TWO)
    assert ask(behind, GENERATE, asking(GENERATE, "new"), ONE).status_code == 401
    refused = ask(behind, GENERATE, asking(GENERATE), ONE)
    assert (refused.status_code, refused.headers["X-Cache"]) == (401, "BYPASS")
    hit = ask(behind, GENERATE, asking(GENERATE), TWO)
    assert (hit.status_code, hit.headers["X-Cache"]) == (200, "HIT")


def test_a_key_that_is_refused_once(locked: Simulator, behind: Proxy) -> None:
    """A 401 is not stored, and the key counts again as soon as upstream takes it."""
    locked.faults.append(Fault.UNAUTHORIZED)
    assert ask(behind, GENERATE, asking(GENERATE), ONE).status_code == 401
    assert behind.stats()["total_responses"] == 0
    kinds = [ask(behind, GENERATE, asking(GENERATE), ONE).headers["X-Cache"] for _ in range(2)]
    assert kinds == ["MISS", "HIT"]


@pytest.mark.one_way
def test_upstream_is_locked_later(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A server that comes back with a key does not have its answers given to all."""
    proxy = start_proxy(simulator.url, "--poll-seconds", "0.1")
    for key in (None, ONE):
        assert ask(proxy, GENERATE, asking(GENERATE), key).status_code == 200
    simulator.restart(api_key=ONE)
    until(lambda: ask(proxy, GENERATE, asking(GENERATE), None).status_code == 401)
    assert ask(proxy, GENERATE, asking(GENERATE), "sk-wrong").status_code == 401
    hit = ask(proxy, GENERATE, asking(GENERATE), ONE)
    assert (hit.status_code, hit.headers["X-Cache"]) == (200, "HIT")
    simulator.restart(api_key="")
    until(lambda: ask(proxy, GENERATE, asking(GENERATE), None).status_code == 200)


@pytest.mark.one_way
def test_down(locked: Simulator, start_proxy: StartProxy) -> None:
    """While upstream is down, only who was accepted before is served."""
    proxy = start_proxy(locked.url, "--poll-seconds", "0.2")
    stored = heard(GENERATE, ask(proxy, GENERATE, asking(GENERATE), ONE))
    assert ask(proxy, GENERATE, asking(GENERATE), "sk-wrong").status_code == 401
    locked.down()
    for form in FORMS.values():
        for key in (TWO, "sk-wrong", None):
            answer = ask(proxy, GENERATE, asking(GENERATE, **form), key)
            assert (answer.status_code, answer.headers["X-Cache"]) == (502, "BYPASS"), key
            assert stored[0] not in answer.text
        hit = ask(proxy, GENERATE, asking(GENERATE, **form), ONE)
        assert (hit.headers["X-Cache"], heard(GENERATE, hit)) == ("HIT", stored)
    assert proxy.stop() == 0
    again = start_proxy(locked.url)  # which has seen nobody accepted
    for key in (ONE, None):
        answer = ask(again, GENERATE, asking(GENERATE), key)
        assert (answer.status_code, answer.headers["X-Cache"]) == (502, "BYPASS")
    locked.up()
    until(lambda: ask(again, GENERATE, asking(GENERATE), ONE).headers["X-Cache"] == "HIT")
    assert ask(again, GENERATE, asking(GENERATE), "sk-wrong").status_code == 401


@pytest.mark.one_way
@pytest.mark.parametrize("info", ["old", "openai"])
def test_other_servers(info: str, start_proxy: StartProxy) -> None:
    """A key is asked for whatever route tells of the model."""
    with running(Profile(api_key=ONE, info=info)) as upstream:
        proxy = start_proxy(upstream.url)
        ask(proxy, CHAT, asking(CHAT), ONE)
        for key, status, kind in (
            (ONE, 200, "HIT"),
            ("sk-wrong", 401, "BYPASS"),
            (None, 401, "BYPASS"),
            (ONE, 200, "HIT"),
        ):
            answer = ask(proxy, CHAT, asking(CHAT), key)
            assert (answer.status_code, answer.headers["X-Cache"]) == (status, kind)


@pytest.mark.one_way
def test_an_open_upstream(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Without keys upstream is asked no more than with them: a hit is no request."""
    proxy = start_proxy(simulator.url, "--poll-seconds", "3600")
    ask(proxy, GENERATE, asking(GENERATE), None)
    assert set(probes(simulator)) == {"/model_info", "/server_info"}
    assert len(probes(simulator)) <= 8
    simulator.received.clear()
    for key in (None, "", "a", "b"):
        for form in FORMS.values():
            hit = ask(proxy, GENERATE, asking(GENERATE, **form), key, Cookie=f"session={key}")
            assert hit.headers["X-Cache"] == "HIT"
    assert simulator.received == []
    ask(proxy, GENERATE, asking(GENERATE, "new"), "c")
    assert len(sampled(simulator)) == 1
    assert len(probes(simulator)) <= 5


# Tenants


@pytest.mark.one_way
def test_isolated(simulator: Simulator, start_proxy: StartProxy) -> None:
    """With --isolate-by-credential nobody sees what others have asked, nor that they did."""
    proxy = start_proxy(simulator.url, "--isolate-by-credential")
    whose: list[tuple[str | None, dict[str, str]]] = [
        (None, {}),
        ("a", {}),
        ("b", {}),
        ("a", {"X-Auth-Token": "d"}),
        (None, {"X-Api-Key": "a"}),
        (None, {"Api-Key": "a"}),
    ]
    for path in BODIES:
        said = []
        for key, headers in whose:
            kinds = []
            for form in (*FORMS.values(), *FORMS.values()):
                answer = ask(proxy, path, asking(path, **form), key, **headers)
                kinds.append(answer.headers["X-Cache"])
                said.append(heard(path, answer)[0])
            assert kinds == ["MISS", "HIT", "HIT", "HIT"], (key, headers)
        assert len(set(said)) == len(whose)
    assert len(sampled(simulator)) == len(whose) * len(BODIES)
    assert proxy.stop() == 0
    again = start_proxy(simulator.url, "--isolate-by-credential")
    for path in BODIES:
        assert ask(again, path, asking(path), "b").headers["X-Cache"] == "HIT"
        assert ask(again, path, asking(path), "c").headers["X-Cache"] == "MISS"
    assert again.stop() == 0
    # What was stored for one key alone is not for all later on; what was without any may be.
    common = start_proxy(simulator.url)
    assert heard(CHAT, ask(common, CHAT, asking(CHAT), "a"))[0] not in said[4:]


@pytest.mark.one_way
def test_isolated_at_the_same_time(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Clients that are kept apart do not share a fetch that is under way."""
    proxy = start_proxy(simulator.url, "--isolate-by-credential")
    for form in FORMS.values():
        simulator.faults += [Fault.HOLD, Fault.HOLD]
        body = asking(CHAT, str(form), **form)
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, proxy, CHAT, body, key) for key in "aabb"]
            until(lambda: simulator.waiting == 2 and proxy.stats()["followers"] == 2)
            simulator.release()
            said = [heard(CHAT, answer.result())[0] for answer in answers]
        assert said[0] == said[1] != said[2] == said[3]


@pytest.mark.one_way
@pytest.mark.parametrize("name", ["cache_salt", "extra_key"])
def test_salts(name: str, simulator: Simulator, start_proxy: StartProxy) -> None:
    """What a client says to keep its cache apart keeps it apart, in every API."""
    proxy = start_proxy(simulator.url)
    for path, form in CALLS:
        text = f"{path} {form}"
        said = []
        for more in ({}, {name: "a"}, {name: "b"}):
            answers = [ask(proxy, path, asking(path, text, **more, **form), None) for _ in "12"]
            assert [answer.headers["X-Cache"] for answer in answers] == ["MISS", "HIT"]
            said.append(heard(path, answers[1])[0])
        assert len(set(said)) == 3


# Headers that choose who answers


def test_headers_of_gateways(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Behind a gateway, a call to one model does not get the answer of another."""
    arguments = ("--key-header", "X-Team", "--key-header", "x-lane")
    proxy = start_proxy(simulator.url, *arguments)
    own: list[dict[str, str]] = [
        {},
        {"x-portkey-provider": "a"},
        {"X-Portkey-Provider": "b"},
        {"x-ai-eg-model": "a"},
        {"X-Model-Id": "a"},
        {"x-team": "a"},
        {"X-Team": "a", "X-Lane": "b"},
    ]
    for path, form in CALLS:
        said, body = [], asking(path, f"{path} {form}", **form)
        for headers in own:
            answers = [ask(proxy, path, body, None, **headers) for _ in "12"]
            assert [a.headers["X-Cache"] for a in answers] == ["MISS", "HIT"], headers
            said.append(heard(path, answers[1])[0])
        assert len(set(said)) == len(own)
        # What is of one request, or in another spelling of its name, changes nothing.
        for more in ({"X-Portkey-Trace-Id": "1"}, {"helicone-request-id": "2"}):
            assert ask(proxy, path, body, None, **more).headers["X-Cache"] == "HIT"
        hit = ask(proxy, path, body, None, **{"X-PORTKEY-PROVIDER": "b"})
        assert heard(path, hit)[0] == said[2]
    assert proxy.stop() == 0
    # Plain bodies are found by their name as well, from the disk.
    again = start_proxy(simulator.url, *arguments)
    body = asking(GENERATE, f"{GENERATE} {FORMS['json']}")
    kinds = [ask(again, GENERATE, body, None, **headers).headers["X-Cache"] for headers in own]
    assert kinds == ["HIT"] * len(own)
    assert ask(again, GENERATE, body, None, **{"x-team": "new"}).headers["X-Cache"] == "MISS"


def test_headers_that_override(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A call with a header that puts a field into the body is passed on, and not stored."""
    proxy = start_proxy(simulator.url)
    for path in BODIES:
        assert ask(proxy, path, asking(path), None).headers["X-Cache"] == "MISS"
        for name in ("rid", "bootstrap-host", "bootstrap-room", "routed-dp-rank", "anything"):
            answer = ask(proxy, path, asking(path), None, **{f"X-Override-{name}": "1"})
            expected = "sglang-cached; fwd=bypass; fwd-status=200; detail=header"
            assert cache_status(answer.headers).replace("; fwd-status=200", "") == (
                expected.replace("; fwd-status=200", "")
            )
        for name in ("priority", "conversation-id"):
            answer = ask(proxy, path, asking(path), None, **{f"X-Override-{name}": "1"})
            assert answer.headers["X-Cache"] == "HIT"


# Secrets


def test_nothing_secret_is_told(locked: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """Keys of clients and of upstream, and the admin token, are in no file, log or answer."""
    token, wrong, cookie = "adm-token-secret", "sk-wrong-secret", "cookie-secret"
    arguments = ("--admin-token", token, "--isolate-by-credential", "--poll-seconds", "0.1")
    proxy = start_proxy(locked.url, *arguments)
    said = [proxy.banner]
    for path, form in CALLS:
        for key in (ONE, TWO, wrong, None):
            for n in (1, 1, 2):
                answer = ask(proxy, path, asking(path, n=n, **form), key, Cookie=cookie)
                said += [answer.text, str(answer.headers)]
    admin = bearer(ADMIN)
    for headers in (admin, bearer(wrong)):
        for path in ("/update_weights_from_disk", "/flush_cache", "/load_lora_adapter"):
            post(proxy, path, {"model_path": "other"}, headers=headers)
    for headers in (bearer(token), bearer(wrong), {**bearer(token), "Origin": "http://x.example"}):
        for method, path in (("GET", "info"), ("GET", "stats"), ("POST", "clear?model=other")):
            url = f"{proxy.url}/cache/{path}"
            answer = requests.request(method, url, headers=headers, timeout=30)
            said += [answer.text, str(answer.headers)]
    locked.down()
    for key in (ONE, wrong):
        said.append(ask(proxy, GENERATE, asking(GENERATE, "new"), key, Cookie=cookie).text)
    said.append(requests.get(f"{proxy.url}/health", timeout=30).text)
    assert proxy.stop() == 0
    said.append(proxy.log)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"state.json", "cache.jsonl"}
    said += [path.read_bytes().decode("utf-8", "replace") for path in files]
    assert any("other" in text for text in said)
    for secret in (ONE, TWO, ADMIN, token, wrong, cookie):
        assert not [text for text in said if secret in text]
