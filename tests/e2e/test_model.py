"""The model behind the URL: whose answers are stored and served, whatever happens to it."""

from __future__ import annotations

import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e import calls
from tests.e2e.calls import (
    BODIES,
    CALLS,
    CHAT,
    COMPLETIONS,
    FORMS,
    GENERATE,
    Stream,
    ask,
    forms,
    greedy,
    post,
    raw,
    sampled,
)
from tests.simulator import Fault, Profile, Simulator, running

pytestmark = pytest.mark.one_way

CACHED = {"Cache-Control": "only-if-cached"}
POLL = ("--poll-seconds", "0.1")
NEVER = ("--poll-seconds", "86400")
GONE = {"model-changed", "other-weights", "unconfirmed"}


def heard(path: str, answer: requests.Response) -> str:
    """What the first choice says."""
    return calls.heard(path, answer)[0]


def cached(proxy: Proxy, path: str, body: Any) -> str | None:
    """What is stored; None where nothing is."""
    answer = ask(proxy, path, body, CACHED)
    if answer.status_code == 504:
        return None
    assert answer.headers["X-Cache"] == "HIT"
    return heard(path, answer)


def fill(proxy: Proxy, simulator: Simulator, text: str = "one two") -> None:
    """Every path has its answer, by what now is the model."""
    for path in BODIES:
        first, other = ("stream", "json") if path == CHAT else ("json", "stream")
        body = greedy(path, text, **FORMS[first])
        assert heard(path, ask(proxy, path, body)) == simulator.says(path, body)
        assert cached(proxy, path, greedy(path, text, **FORMS[other])) == simulator.says(path, body)


def look(proxy: Proxy) -> dict[str, Any]:
    """What upstream is taken for, when there is traffic."""
    post(proxy, GENERATE, greedy(GENERATE, "never stored"), headers=CACHED)
    found: dict[str, Any] = proxy.info()["model"]
    return found


def noticed(proxy: Proxy, before: str) -> str:
    """The fingerprint, when there is traffic and it is no longer this one."""
    until(lambda: look(proxy)["fingerprint"] != before)
    return str(look(proxy)["fingerprint"])


def settled(proxy: Proxy, simulator: Simulator, before: str) -> str:
    """As `noticed`, once all that upstream tells of itself was asked for since then: a change may
    come between two questions."""
    noticed(proxy, before)
    count = asked(simulator, "/model_info")
    until(lambda: look(proxy) and asked(simulator, "/model_info") > count + 2)
    return str(look(proxy)["fingerprint"])


def asked(simulator: Simulator, *paths: str) -> int:
    return sum(r.path in paths for r in tuple(simulator.received))


# What makes it another model


CHANGES: list[dict[str, Any]] = [
    {"model": "other"},
    {"served_model_name": "renamed"},
    {"weight_version": "v2", "weights": "v2"},
    {"dtype": "float16"},
    {"quantization": "fp8"},
    {"revision": "abc"},
    {"chat_template": "x"},
]


def test_each_model_has_its_own(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What upstream tells of itself is in the key; a model that returns finds its answers."""
    proxy = start_proxy(simulator.url, *POLL)
    fill(proxy, simulator)
    first = proxy.info()["model"]["fingerprint"]
    plain = simulator.profile
    usual = simulator.says(GENERATE, greedy(GENERATE))
    seen = {first}
    for changes in CHANGES:
        simulator.become(**changes)
        there = settled(proxy, simulator, first)
        assert there not in seen, changes
        seen.add(there)
        assert cached(proxy, GENERATE, greedy(GENERATE)) is None
        body = greedy(GENERATE)
        assert heard(GENERATE, ask(proxy, GENERATE, body)) == simulator.says(GENERATE, body)
        simulator.profile = plain
        assert settled(proxy, simulator, there) == first
        assert cached(proxy, GENERATE, greedy(GENERATE)) == usual
    assert proxy.stats()["total_responses"] == len(BODIES) + len(CHANGES)
    # What is told between two questions makes one more model, of which nothing is stored.
    models = [model for model in proxy.info()["models"] if model["samples"]]
    assert {model["fingerprint"] for model in models} == seen
    assert sorted(model["samples"] for model in models) == [1] * len(CHANGES) + [len(BODIES)]


SOURCES = {
    "old": ({"/get_model_info", "/get_server_info"}, {"dtype": "float16"}),
    "openai": ({"/v1/models"}, {"model": "other"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_other_servers(source: str, start_proxy: StartProxy) -> None:
    """Where there is no /model_info, an older route tells, or OpenAI's list of models."""
    paths, change = SOURCES[source]
    with running(Profile(info=source)) as upstream:
        proxy = start_proxy(upstream.url, *POLL)
        fill(proxy, upstream)
        assert proxy.info()["model"]["name"] == "simulated"
        before = proxy.info()["model"]["fingerprint"]
        upstream.become(**change)
        noticed(proxy, before)
        assert cached(proxy, CHAT, greedy(CHAT)) is None
        fill(proxy, upstream)
        assert asked(upstream, *paths) > 2


def test_no_model(start_proxy: StartProxy) -> None:
    """An upstream that does not tell which model it has is used, but nothing is stored."""
    with running(Profile(info="none")) as upstream:
        proxy = start_proxy(upstream.url)
        for path, form in CALLS:
            for _ in range(2):
                answer = ask(proxy, path, greedy(path, **form))
                assert heard(path, answer) == upstream.says(path, greedy(path))
                assert answer.headers["X-Cache"] == "BYPASS"
                assert answer.headers["Cache-Status"].endswith("detail=no-model")
        assert proxy.stats()["total_responses"] == 0
        assert proxy.info()["model"]["name"] is None


def test_hit_of_the_former_model(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A hit of the former model is given for no longer than the poll interval."""
    poll = 0.5
    proxy = start_proxy(simulator.url, "--poll-seconds", str(poll))
    body = greedy(GENERATE)
    former = heard(GENERATE, ask(proxy, GENERATE, body))
    for name in ("other", "simulated", "other"):
        former = heard(GENERATE, post(proxy, GENERATE, body))
        simulator.become(model=name)
        swapped = time.monotonic()
        deadline = swapped + poll + 0.2
        while (began := time.monotonic()) < deadline:
            if heard(GENERATE, post(proxy, GENERATE, body)) == former:
                assert began <= swapped + poll
            threading.Event().wait(0.01)
        assert heard(GENERATE, post(proxy, GENERATE, body)) == simulator.says(GENERATE, body)


def test_hits_cost_no_questions(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A server is left alone before the first call; hits then cost it a question an interval."""
    proxy = start_proxy(simulator.url, "--poll-seconds", "0.3")
    simulator.received.clear()
    threading.Event().wait(0.7)
    assert simulator.received == []
    ask(proxy, GENERATE, greedy(GENERATE))
    simulator.received.clear()
    began, hits = time.monotonic(), 0
    while time.monotonic() < began + 1.0 or hits < 10:
        assert post(proxy, GENERATE, greedy(GENERATE)).headers["X-Cache"] == "HIT"
        hits += 1
        threading.Event().wait(0.01)
    intervals = (time.monotonic() - began) / 0.3
    assert 2 <= asked(simulator, "/model_info") <= 2 * intervals + 3
    assert sampled(simulator) == []


@forms
def test_swap_that_an_answer_shows(
    form: Any, simulator: Simulator, start_proxy: StartProxy
) -> None:
    """Without a poll, the first answer of the new model ends the former one's hits."""
    proxy = start_proxy(simulator.url, *NEVER)
    fill(proxy, simulator)
    simulator.become(weight_version="v2", weights="v2")
    body = greedy(GENERATE, "new", **form)
    assert heard(GENERATE, ask(proxy, GENERATE, body)) == simulator.says(GENERATE, body)
    until(lambda: cached(proxy, GENERATE, greedy(GENERATE)) is None)
    fill(proxy, simulator)
    fill(proxy, simulator, "new")


def test_other_weights(simulator: Simulator, start_proxy: StartProxy) -> None:
    """An answer of weights that the server does not name is not kept. (Streams of OpenAI's API do
    not tell theirs.)"""
    proxy = start_proxy(simulator.url)
    telling = [(path, form) for path, form in CALLS if path == GENERATE or not form]
    for fault, reason in (
        (Fault.OTHER_VERSION, "other-weights"),
        (Fault.TWO_WEIGHTS, "mixed-weights"),
    ):
        for path, form in telling:
            body = greedy(path, f"{fault} {path}", **form)
            before = proxy.stats()["not_stored"].get(reason, 0)
            simulator.faults.append(fault)
            answer = ask(proxy, path, body)
            assert answer.status_code == 200
            assert form or f"detail={reason}" in answer.headers["Cache-Status"]
            assert proxy.stats()["not_stored"] == {
                **proxy.stats()["not_stored"], reason: before + 1
            }, (fault, path, form)  # fmt: skip
            assert cached(proxy, path, body) is None
            kinds = [ask(proxy, path, body).headers["X-Cache"] for _ in range(2)]
            assert kinds == ["MISS", "HIT"]
            requests.post(f"{proxy.url}/cache/clear", timeout=30)


# While an answer is on its way


@pytest.mark.parametrize("fault", [Fault.HOLD, Fault.PAUSE])
@forms
def test_swap_during_a_call(
    form: Any, fault: Fault, simulator: Simulator, start_proxy: StartProxy
) -> None:
    """An answer of the former model is given to who asked, and stored under neither."""
    proxy = start_proxy(simulator.url, *NEVER)
    for path in BODIES:
        body = greedy(path, f"{path} {fault}", **form)
        ask(proxy, path, greedy(path, "before"))
        before, stored = proxy.info()["model"]["fingerprint"], proxy.stats()["total_responses"]
        was, other = simulator.profile.model, f"other {path}"
        simulator.faults.append(fault)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, proxy, path, body)
            until(lambda: simulator.waiting == 1)
            simulator.become(model=other)
            simulator.release()
            assert heard(path, answer.result()) == simulator.says(path, body, model=was)
        assert proxy.stats()["total_responses"] == stored
        assert set(proxy.stats()["not_stored"]) <= GONE
        assert noticed(proxy, before)
        assert cached(proxy, path, body) is None
        assert heard(path, ask(proxy, path, body)) == simulator.says(path, body)
        assert cached(proxy, path, body) == simulator.says(path, body)
    assert sum(proxy.stats()["not_stored"].values()) == len(BODIES)


def test_one_question_for_many(start_proxy: StartProxy) -> None:
    """Answers that come together share the question whether it still is the same model; and who
    repeats its call at once waits for that, and does not ask for samples again."""
    count = 24
    with running(Profile(info_delay=0.2)) as upstream:
        proxy = start_proxy(upstream.url, *NEVER)
        bodies = [greedy(GENERATE, f"p {i}") for i in range(count)]
        upstream.faults += [Fault.HOLD] * count

        def twice(body: Any) -> list[str]:
            return [post(proxy, GENERATE, body).headers["X-Cache"] for _ in range(2)]

        with ThreadPoolExecutor(count) as pool:
            answers = [pool.submit(twice, body) for body in bodies]
            until(lambda: upstream.waiting == count)
            until(lambda: upstream.parked == 0)
            upstream.received.clear()
            upstream.release()
            kinds = [answer.result() for answer in answers]
        assert kinds == [["MISS", "HIT"]] * count
        assert sampled(upstream) == []
        # And one question on each connection that is new, whether it leads to the same server.
        assert asked(upstream, "/server_info") <= 4
        assert asked(upstream, "/model_info") <= count + 4


def test_upstream_goes_before_it_is_confirmed(start_proxy: StartProxy) -> None:
    """What could not be confirmed is not stored."""
    with running(Profile(info_delay=0.3)) as upstream:
        proxy = start_proxy(upstream.url, *NEVER)
        ask(proxy, GENERATE, greedy(GENERATE))
        until(lambda: proxy.stats()["total_responses"] == 1)
        assert post(proxy, GENERATE, greedy(GENERATE, "new")).status_code == 200
        upstream.down()
        until(lambda: proxy.stats()["not_stored"] == {"unconfirmed": 1})
        assert proxy.stats()["total_responses"] == 1
        assert cached(proxy, GENERATE, greedy(GENERATE))
        assert cached(proxy, GENERATE, greedy(GENERATE, "new")) is None


MODELS = ("north", "south")


@pytest.mark.parametrize("seed", [1])
def test_swaps_under_load(seed: int, start_proxy: StartProxy) -> None:
    """The model is swapped at random moments while clients ask: nothing is stored of the wrong one.

    Each model is there for at least one look at it; two swaps between two looks are seen only in
    what the answer says of itself.
    """
    dice = random.Random(seed)
    with running(Profile(model=MODELS[0], tokens_per_second=800)) as upstream:
        proxy = start_proxy(upstream.url, "--poll-seconds", "0.5", "--quiet")
        over = threading.Event()
        done: list[tuple[str, dict[str, Any]]] = []

        def client(number: int) -> None:
            path, form = CALLS[number]
            with requests.Session() as session:
                for i in itertools.count():
                    body = greedy(path, f"{number} {i}", **form)
                    answer = session.post(proxy.url + path, json=body, timeout=30)
                    done.append((path, body))
                    by = {upstream.says(path, body, model=model) for model in MODELS}
                    assert heard(path, answer) in by
                    if over.is_set():
                        return

        with ThreadPoolExecutor(len(CALLS)) as pool:
            clients = [pool.submit(client, number) for number in range(len(CALLS))]
            try:
                for i in range(24):
                    over.wait(dice.uniform(0.02, 0.1))
                    upstream.become(model=MODELS[(i + 1) % 2])
                    seen = asked(upstream, "/model_info")
                    # The answer to one look is there before the next is taken.
                    until(lambda seen=seen: asked(upstream, "/model_info") > seen + 1)
                    if i % 10 < 2:  # each model is there for whole calls, however slow they are
                        enough = len(done) + 2 * len(CALLS)
                        until(lambda enough=enough: len(done) >= enough)
            finally:
                over.set()
            for one in clients:
                one.result()
        until(lambda: not proxy.stats()["fetches_in_flight"])  # what has come is stored, or not
        not_stored = proxy.stats()["not_stored"]
        assert set(not_stored) <= GONE
        assert not_stored
        stored = dict.fromkeys(MODELS, 0)
        for known in proxy.info()["models"]:
            stored[known["name"]] += known["samples"]
        for model in MODELS:
            upstream.become(model=model)
            until(lambda model=model: look(proxy)["name"] == model)
            hits = 0
            with requests.Session() as session:
                for path, body in done:
                    answer = session.post(proxy.url + path, json=body, headers=CACHED, timeout=30)
                    if answer.status_code == 504:
                        continue
                    assert answer.headers["X-Cache"] == "HIT"
                    assert heard(path, answer) == upstream.says(path, body), (model, path, body)
                    hits += 1
            assert hits == stored[model] > 0
            assert proxy.info()["model"]["name"] == model


# Calls that change the model


UPDATES: list[tuple[str, dict[str, Any]]] = [
    ("/update_weights_from_disk", {"model_path": "simulated"}),
    ("/update_weights_from_tensor", {"serialized_named_tensors": ["x"]}),
    ("/update_weights_from_distributed", {"names": [], "dtypes": [], "shapes": []}),
    ("/update_weights_from_ipc", {"zmq_handles": {}}),
    ("/begin_weight_update", {}),
    ("/end_weight_update", {}),
    ("/update_weight_version", {"new_version": "default"}),
    ("/set_internal_state", {"server_args": {"pp_max_micro_batch_size": 8}}),
    ("/release_memory_occupation", {}),
    ("/resume_memory_occupation", {}),
    ("/weights_checker", {"action": "reset_tensors"}),
]


def test_changes(simulator: Simulator, start_proxy: StartProxy) -> None:
    """After a call that may change the model everything is fetched anew; the call itself, and its
    answer, pass through as they are."""
    proxy = start_proxy(simulator.url, *NEVER)
    for path, body in UPDATES:
        fill(proxy, simulator)
        simulator.received.clear()
        raw = json.dumps(body, indent=1).encode()
        headers = {"Content-Type": "application/json", "X-Mine": "1"}
        answer = requests.post(proxy.url + path, data=raw, headers=headers, timeout=30)
        assert answer.status_code == 200, (path, answer.text)
        (seen,) = [r for r in simulator.received if r.path == path]
        assert (seen.body, seen.headers["x-mine"]) == (raw, "1")
        for other in BODIES:
            assert cached(proxy, other, greedy(other)) is None, path
    fill(proxy, simulator)


def test_a_change_that_fails(simulator: Simulator, start_proxy: StartProxy) -> None:
    """An update that broke off may have changed something; one that was refused has not."""
    simulator.become(admin_api_key="adm")
    proxy = start_proxy(simulator.url, *NEVER)
    admin = {"Authorization": "Bearer adm"}
    fill(proxy, simulator)
    before = proxy.info()["model"]["fingerprint"]
    for method, path, headers, status in (
        ("POST", "/update_weights_from_disk", {}, 401),
        ("POST", "/load_lora_adapter", {}, 401),
        ("POST", "/update_weights_from_nowhere", admin, 404),
        ("GET", "/update_weights_from_disk", admin, 405),
        ("PUT", "/unload_lora_adapter", admin, 405),
        ("POST", "/flush_cache", admin, 200),
        ("OPTIONS", "/update_weights_from_disk", admin, None),
    ):
        body = {"model_path": "other", "lora_name": "a"}
        answer = requests.request(method, proxy.url + path, json=body, headers=headers, timeout=30)
        assert answer.status_code == status or status is None, (method, path)
        for form in FORMS.values():
            hit = ask(proxy, GENERATE, greedy(GENERATE, **form))
            assert hit.headers["X-Cache"] == "HIT", (method, path)
        assert proxy.info()["model"]["fingerprint"] == before, (method, path)
    body = {"no_model_path": 1}
    url = f"{proxy.url}/update_weights_from_disk"
    assert requests.post(url, json=body, headers=admin, timeout=30).status_code == 400
    assert cached(proxy, GENERATE, greedy(GENERATE)) is None


@forms
def test_change_during_a_call(form: Any, simulator: Simulator, start_proxy: StartProxy) -> None:
    """What was in flight when the weights changed is of nobody knows which."""
    proxy = start_proxy(simulator.url, *NEVER)
    for path in BODIES:
        body = greedy(path, **form)
        simulator.faults.append(Fault.HOLD)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, proxy, path, body)
            until(lambda: simulator.waiting == 1)
            assert post(proxy, *UPDATES[1]).status_code == 200
            simulator.release()
            answer.result()
        assert cached(proxy, path, body) is None
    assert proxy.stats()["not_stored"] == {"model-changed": len(BODIES)}
    fill(proxy, simulator)


def test_call_during_a_change(simulator: Simulator, start_proxy: StartProxy) -> None:
    """An update that upstream does not have as a whole changes nothing yet; once it was carried
    out, nothing is served of before."""
    proxy = start_proxy(simulator.url, *NEVER)
    fill(proxy, simulator)
    data = raw(*UPDATES[1])
    with proxy.connect(30) as client:
        client.sendall(data[:-1])
        for path, form in CALLS:
            answer = ask(proxy, path, greedy(path, **form))
            assert answer.headers["X-Cache"] == "HIT"
            assert heard(path, answer) == simulator.says(path, greedy(path))
        fill(proxy, simulator, "a new text")
        client.sendall(data[-1:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert proxy.stats()["not_stored"] == {}
    for path in BODIES:
        assert cached(proxy, path, greedy(path)) is None
    fill(proxy, simulator)


def test_killed_during_a_change(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Nobody knows what became of an update that was on its way when the proxy died."""
    proxy = start_proxy(simulator.url, *NEVER)
    fill(proxy, simulator)
    with proxy.connect(30) as client:
        client.sendall(raw(*UPDATES[1])[:-1])
        # Written down before the request is passed on: until then nothing has changed.
        state = Path(proxy.stats()["cache_file"]).with_name("state.json")
        until(lambda: json.loads(state.read_bytes())["unsettled"])
        proxy.stop(signal.SIGKILL)
    again = start_proxy(simulator.url)
    for path in BODIES:
        assert cached(again, path, greedy(path)) is None
    fill(again, simulator)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_change_outlives_a_restart(
    number: int, simulator: Simulator, start_proxy: StartProxy
) -> None:
    """Answers of before the update do not come back with the next process, even after a crash."""
    proxy = start_proxy(simulator.url)
    fill(proxy, simulator)
    old = simulator.says(GENERATE, greedy(GENERATE))
    assert post(proxy, *UPDATES[1]).status_code == 200
    if number == signal.SIGTERM:
        fill(proxy, simulator)
    proxy.stop(number)
    again = start_proxy(simulator.url)
    assert simulator.says(GENERATE, greedy(GENERATE)) != old
    found = cached(again, GENERATE, greedy(GENERATE))
    assert found == (
        simulator.says(GENERATE, greedy(GENERATE)) if number == signal.SIGTERM else None
    )
    fill(again, simulator)


def test_restart_of_a_changed_upstream(simulator: Simulator, start_proxy: StartProxy) -> None:
    """A server that was updated and then started anew is neither what it was before the restart,
    nor trusted to be what it was at first."""
    proxy = start_proxy(simulator.url, *POLL)
    fill(proxy, simulator)
    assert post(proxy, *UPDATES[1]).status_code == 200
    fill(proxy, simulator)
    before = proxy.info()["model"]["fingerprint"]
    simulator.restart()
    noticed(proxy, before)
    assert cached(proxy, GENERATE, greedy(GENERATE)) is None
    fill(proxy, simulator)


def test_restart_of_an_unchanged_upstream(simulator: Simulator, start_proxy: StartProxy) -> None:
    """The same server with the same model keeps its answers."""
    proxy = start_proxy(simulator.url, *POLL)
    fill(proxy, simulator)
    count = len(sampled(simulator))
    simulator.restart()
    for _ in range(10):
        for path, form in CALLS:
            assert ask(proxy, path, greedy(path, **form)).headers["X-Cache"] == "HIT"
    assert len(sampled(simulator)) == count
    # What comes before the restart is noticed is not stored: another model might have been there.
    seen = asked(simulator, "/model_info")
    assert until(lambda: asked(simulator, "/model_info") > seen + 1)
    fill(proxy, simulator, "new")


# Down and up


def test_down_and_up(simulator: Simulator, start_proxy: StartProxy) -> None:
    """Hits go on while upstream is down, also of a proxy that starts then; another model that comes
    up in its place has its own answers at once."""
    proxy = start_proxy(simulator.url, *POLL)
    fill(proxy, simulator)
    first = {path: simulator.says(path, greedy(path)) for path in BODIES}
    simulator.down()
    for path, form in CALLS * 3:
        assert cached(proxy, path, greedy(path, **form)) == first[path]
    assert ask(proxy, GENERATE, greedy(GENERATE, "new")).status_code == 502
    assert proxy.stop() == 0
    again = start_proxy(simulator.url, *POLL)
    assert "does not answer" in again.log
    for path, form in CALLS:
        assert cached(again, path, greedy(path, **form)) == first[path]
    model = again.info()["model"]
    assert model["name"] == "simulated"
    simulator.up(model="other")
    noticed(again, model["fingerprint"])
    assert cached(again, GENERATE, greedy(GENERATE)) is None
    fill(again, simulator)
    simulator.restart(model="simulated")
    until(lambda: cached(again, GENERATE, greedy(GENERATE)) == first[GENERATE])
    for path, form in CALLS:
        assert cached(again, path, greedy(path, **form)) == first[path]


def test_never_up(start_proxy: StartProxy) -> None:
    """A proxy that starts before its server learns who it is when it comes."""
    with running(Profile()) as upstream:
        upstream.down()
        proxy = start_proxy(upstream.url, *POLL)
        assert ask(proxy, GENERATE, greedy(GENERATE)).status_code == 502
        upstream.up()
        until(lambda: ask(proxy, GENERATE, greedy(GENERATE)).headers["X-Cache"] == "HIT")
        fill(proxy, upstream)


# What people see of it


def test_info_and_clear(simulator: Simulator, start_proxy: StartProxy) -> None:
    """/cache/info tells the models apart, and each can be cleared for itself, on disk, too."""
    proxy = start_proxy(simulator.url, *POLL)
    names = ["simulated", "second", "third"]
    fingerprints = []
    for count, name in enumerate(names, 1):
        if name != names[0]:
            simulator.become(model=name)
            settled(proxy, simulator, fingerprints[-1])
        for i in range(count):
            assert ask(proxy, CHAT, greedy(CHAT, f"{i}")).headers["X-Cache"] == "MISS"
        fingerprints.append(proxy.info()["model"]["fingerprint"])
    told = proxy.info()
    assert told["model"]["name"] == names[-1]
    assert told["model"]["weight_version"] == "default"
    assert told["model"]["asks_keys"] is False
    models = [m for m in told["models"] if m["samples"]]
    shown = {m["name"]: (m["fingerprint"], m["samples"]) for m in models}
    assert shown == {
        name: (fingerprint, count)
        for count, (name, fingerprint) in enumerate(zip(names, fingerprints, strict=True), 1)
    }
    status = ask(proxy, CHAT, greedy(CHAT, "0")).headers["Cache-Status"]
    (prefix,) = [m["key"] for m in models if m["name"] == names[-1]]
    assert f'key="{prefix}' in status

    def clear(query: str) -> int:
        answer = requests.post(f"{proxy.url}/cache/clear{query}", timeout=30)
        assert answer.status_code == 200
        cleared: int = answer.json()["cleared_responses"]
        assert cleared == answer.json()["cleared_keys"]
        return cleared

    simulator.become(model="second")
    settled(proxy, simulator, fingerprints[2])
    assert clear("?model=current") == 2
    assert cached(proxy, CHAT, greedy(CHAT, "0")) is None
    assert {m["name"]: m["samples"] for m in proxy.info()["models"] if m["samples"]} == {
        "simulated": 1, "third": 3
    }  # fmt: skip
    ask(proxy, CHAT, greedy(CHAT, "0"))
    assert clear("?model=other") == 4
    assert cached(proxy, CHAT, greedy(CHAT, "0"))
    assert proxy.stop() == 0
    proxy = start_proxy(simulator.url, *POLL)
    assert "(1 entries, 1 samples)" in proxy.banner
    assert cached(proxy, CHAT, greedy(CHAT, "0")) == simulator.says(CHAT, greedy(CHAT, "0"))
    assert clear("?model=all") == 1
    assert proxy.stats()["total_responses"] == 0


# Adapters


@pytest.fixture
def adapted() -> Iterator[Simulator]:
    with running(Profile(lora_paths=("a=/a", "b=/b"))) as upstream:
        yield upstream


def by_path(path: str, name: str | None, **more: Any) -> dict[str, Any]:
    return greedy(path, lora_path=name, **more)


def by_model(path: str, name: str | None, **more: Any) -> dict[str, Any]:
    model = f"simulated:{name}" if name else "simulated"
    return greedy(path, **{**more, "model": model})


NAMES = (None, "a", "b")
WAYS: list[tuple[str, Callable[..., dict[str, Any]], dict[str, Any]]] = [
    (path, way, form)
    for path, way in (
        (GENERATE, by_path),
        (CHAT, by_path),
        (CHAT, by_model),
        (COMPLETIONS, by_model),
    )
    for form in FORMS.values()
]


def test_adapters(adapted: Simulator, start_proxy: StartProxy) -> None:
    """Which adapter is asked for is content, however it is named; a new one under an old name is
    asked anew, and only that."""
    proxy = start_proxy(adapted.url, *NEVER)

    def look() -> list[list[bool]]:
        return [[cached(proxy, p, way(p, name, **f)) is not None for name in NAMES]
                for p, way, f in WAYS]  # fmt: skip

    def fetch_all() -> None:
        for path, way, form in WAYS:
            bodies = [way(path, name, **form) for name in NAMES]
            said = [heard(path, ask(proxy, path, body)) for body in bodies]
            assert said == [adapted.says(path, body) for body in bodies]
            assert len(set(said)) == len(NAMES)

    fetch_all()
    assert look() == [[True, True, True]] * len(WAYS)
    assert post(proxy, "/unload_lora_adapter", {"lora_name": "a"}).status_code == 200
    assert look() == [[True, False, True]] * len(WAYS)
    body = {"lora_name": "a", "lora_path": "/another"}
    assert post(proxy, "/load_lora_adapter", body).status_code == 200
    assert look() == [[True, False, True]] * len(WAYS)
    fetch_all()
    assert look() == [[True, True, True]] * len(WAYS)
    assert proxy.stop() == 0
    proxy = start_proxy(adapted.url, *NEVER)
    assert look() == [[True, True, True]] * len(WAYS)
    # From tensors: nothing that upstream tells shows what the name now stands for.
    assert post(proxy, "/unload_lora_adapter", {"lora_name": "b"}).status_code == 200
    body = {"lora_name": "b", "config_dict": {}, "serialized_named_tensors": "x"}
    assert post(proxy, "/load_lora_adapter_from_tensors", body).status_code == 200
    assert look() == [[True, True, False]] * len(WAYS)
    fetch_all()


@forms
def test_adapter_during_a_call(form: Any, adapted: Simulator, start_proxy: StartProxy) -> None:
    """A call with an adapter that is bound anew meanwhile is not stored."""
    proxy = start_proxy(adapted.url, *NEVER)
    body = by_path(GENERATE, "a", **form)
    adapted.faults.append(Fault.HOLD)
    with closing(Stream(proxy, GENERATE, body)) as client:
        until(lambda: adapted.waiting == 1)
        assert post(proxy, "/unload_lora_adapter", {"lora_name": "a"}).status_code == 200
        again = {"lora_name": "a", "lora_path": "/another"}
        assert post(proxy, "/load_lora_adapter", again).status_code == 200
        adapted.release()
        assert client.begin().status == 200
        until(lambda: proxy.stats()["not_stored"] == {"model-changed": 1})
    assert cached(proxy, GENERATE, body) is None
    assert heard(GENERATE, ask(proxy, GENERATE, body)) == adapted.says(GENERATE, body)


def test_adapter_that_cannot_be_read(adapted: Simulator, start_proxy: StartProxy) -> None:
    """Where it is not clear which adapter changes, all may have."""
    proxy = start_proxy(adapted.url, *NEVER)
    for body in (b"{", b"[]", b'{"lora_name": 1}', b'{"lora_name": ""}'):
        ask(proxy, GENERATE, by_path(GENERATE, "a"))
        headers = {"Content-Type": "application/json"}
        url = f"{proxy.url}/load_lora_adapter"
        assert requests.post(url, data=body, headers=headers, timeout=30).status_code == 400
        assert cached(proxy, GENERATE, by_path(GENERATE, "a")) is None, body
