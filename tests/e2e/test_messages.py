"""Anthropic's `/v1/messages`: one sample a call, streams of named events, and aborts that do not
show."""

from __future__ import annotations

import json
import random
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, corpus, until
from tests.e2e.calls import ask, post
from tests.e2e.test_proxy import whole
from tests.hearing import Heard, hearing
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each

PATH, BETA, COUNT = "/v1/messages", "/v1/messages?beta=true", "/v1/messages/count_tokens"
CALL = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "one two"}]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "input_schema": CITY}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "a system": {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "tools": {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 64},
}


POOL = ThreadPoolExecutor(4)


def events(answer: requests.Response) -> list[tuple[str, Any]]:
    """The names and the data of a stream's events."""
    found = []
    for event in answer.text.split("\n\n")[:-1]:
        name, data = event.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def message(answer: requests.Response) -> Any:
    """What a stream comes to, as Anthropic's clients put it together."""
    whole: Any = None
    for name, said in events(answer):
        assert said["type"] == name
        if name == "message_start":
            whole = said["message"]
        elif name == "content_block_start":
            whole["content"].append(said["content_block"] | {"input": ""})
        elif name == "content_block_delta":
            (text,) = (value for kind, value in said["delta"].items() if kind != "type")
            block = whole["content"][said["index"]]
            kind = {"tool_use": "input"}.get(block["type"], block["type"])
            block[kind] += text
        elif name == "content_block_stop":
            block = whole["content"][said["index"]]
            given = block.pop("input")
            if block["type"] == "tool_use":
                block["input"] = json.loads(given or "{}")
        elif name == "message_delta":
            whole |= said["delta"]
            whole["usage"] |= said["usage"]
    return whole


def generations(simulator: Simulator, path: str = PATH) -> list[Any]:
    """The bodies of the calls of an API that have come to the server."""
    found = [r for r in simulator.received if r.path.partition("?")[0] == path]
    return [json.loads(request.body) for request in found]


def kind(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Cache"]


@pytest.mark.shared
@each("form", FORMS.values(), ids=FORMS)
@each("first", ["json", "stream"])
def test_one_pool(form: dict[str, Any], first: str, simulator: Simulator, proxy: Proxy) -> None:
    """A stream and JSON are of one sample, whichever comes first, with `?beta=true` or without;
    what a client says of itself makes no difference."""
    body = {**CALL, **form, "not_yet_invented": first}
    streamed = {**body, "stream": True, "metadata": {"user_id": "u"}}
    calls = [(PATH, body), (BETA, streamed), (BETA, body), (PATH, streamed)]
    simulator.received.clear()
    if first == "stream":
        calls.reverse()
    answers = [ask(proxy, path, each) for path, each in calls]
    assert [kind(answer) for answer in answers] == ["MISS", "HIT", "HIT", "HIT"]
    streams = [answer for answer in answers if "event-stream" in answer.headers["content-type"]]
    jsons = [answer for answer in answers if answer not in streams]
    assert jsons[0].content == jsons[1].content
    assert streams[0].content == streams[1].content
    assert message(streams[0]) == jsons[0].json()
    assert len(generations(simulator)) == 1


@pytest.mark.shared
def test_what_differs(simulator: Simulator, proxy: Proxy) -> None:
    """What may change an answer is in the key: fields, known or not, and Anthropic's headers, which
    go on to the server."""
    assert kind(ask(proxy, PATH, {**CALL, "x": 0})) == "MISS"
    for more in ({"x": 1}, {"temperature": 0.5}, {"thinking": {"type": "disabled"}}):
        assert kind(ask(proxy, PATH, {**CALL, "x": 0, **more})) == "MISS"
    for name, value in (("anthropic-beta", "a"), ("anthropic-beta", "b"),
                        ("anthropic-version", "2023-06-01")):  # fmt: skip
        headers = {name: value}
        turns = [ask(proxy, PATH, {**CALL, "x": 0}, headers) for _ in range(2)]
        assert [kind(turn) for turn in turns] == ["MISS", "HIT"]
        (*_, asked) = (r for r in simulator.received if r.path == PATH)
        assert asked.headers[name] == value
    for path in (f"{PATH}?beta=false", f"{PATH}?beta=true&x=1", f"{PATH}?beta"):
        answer = post(proxy, path, {**CALL, "x": 0})
        assert (kind(answer), "query" in answer.headers["Cache-Status"]) == ("BYPASS", True)


@pytest.mark.shared
def test_counts(simulator: Simulator, proxy: Proxy) -> None:
    """Counts of tokens are asked for once."""
    for body in (CALL, {**CALL, "tools": [TOOL]}):
        direct = requests.post(simulator.url + COUNT, json=body, timeout=30).json()
        for path, wanted in ((COUNT, "MISS"), (COUNT, "HIT"), (f"{COUNT}?beta=true", "HIT")):
            answer = ask(proxy, path, body)
            assert (kind(answer), answer.json()) == (wanted, direct)


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_runs(form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """In a run the k-th call gets the k-th sample, in the other form too, and a second run gets the
    same ones; outside of runs it is the first."""
    body = {**CALL, "runs": len(form)}
    first = [ask(proxy, f"/run/a{len(form)}{BETA}", {**body, **form}) for _ in range(3)]
    assert [kind(answer) for answer in first] == ["MISS"] * 3
    second = [ask(proxy, f"/run/b{len(form)}{PATH}", body) for _ in range(3)]
    assert [kind(answer) for answer in second] == ["HIT"] * 3
    texts = [message(answer) if form else answer.json() for answer in first]
    assert texts == [answer.json() for answer in second]
    assert len({str(text["content"]) for text in texts}) == 3
    assert ask(proxy, PATH, body).json() == texts[0]
    assert all("n" not in sent for sent in generations(simulator))


@pytest.mark.shared
@each(("path", "call"), [(PATH, CALL), ("/v1/responses", {"model": "m", "input": "one two"})])
def test_directives(path: str, call: dict[str, Any], proxy: Proxy) -> None:
    """Directives hold as they do elsewhere."""
    body = {**call, "directives": True}

    def asked(directive: str) -> requests.Response:
        return ask(proxy, path, body, {"Cache-Control": directive})

    assert asked("only-if-cached").status_code == 504
    assert kind(asked("no-store")) == "BYPASS"
    assert kind(ask(proxy, path, body)) == "MISS"
    fresh = asked("no-cache")
    assert kind(fresh) == "MISS"
    assert [kind(asked(each)) for each in ("max-age=60", "only-if-cached")] == ["HIT"] * 2
    assert ask(proxy, path, body).json() == fresh.json()


def under_way(
    simulator: Simulator, proxy: Proxy, path: str, body: Any, fault: Fault
) -> Future[requests.Response]:
    """A call that has come to the server, and waits there."""
    of = path.partition("?")[0]
    before = len(generations(simulator, of))
    simulator.faults.append(fault)
    call = POOL.submit(ask, proxy, path, body)
    until(lambda: len(generations(simulator, of)) > before)
    return call


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_collapsing(form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """Equal calls at the same time are one call to the server; streams are read along."""
    body = {**CALL, "together": len(form), **form}
    first = under_way(simulator, proxy, BETA, body, Fault.HOLD)
    second = POOL.submit(post, proxy, PATH, body)
    until(lambda: requests.get(f"{proxy.url}/cache/stats", timeout=30).json()["followers"] == 1)
    simulator.release()
    answers = [first.result(), second.result()]
    assert [kind(answer) for answer in answers] == ["MISS", "COLLAPSED"]
    assert answers[0].content == answers[1].content
    assert sum(sent == body for sent in generations(simulator)) == 1


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each(
    ("fault", "path", "asked"),
    [
        (Fault.PAUSE, "/abort_request", {"abort_all": True}),
        (Fault.HOLD, "/abort_request", {"rid": "nobody's"}),
        (Fault.HOLD, "/abort_request?x=1", {"rid": "nobody's"}),
        (Fault.HOLD, "/pause_generation", {"mode": "retract"}),
    ],
)
def test_aborts(
    fault: Fault, path: str, asked: Any, form: dict[str, Any], simulator: Simulator, proxy: Proxy
) -> None:
    """Where something that may abort a call passes while it is under way, its client gets what
    comes, and nothing is stored."""
    body = {**CALL, "aborted": [path, asked, len(form)], **form}
    call = under_way(simulator, proxy, BETA, body, fault)
    assert post(proxy, path, asked).status_code == 200
    requests.post(f"{simulator.url}/continue_generation", json={}, timeout=30)
    simulator.release()
    answer = call.result()
    whole = message(answer) if form else answer.json()
    assert (kind(answer), whole["stop_reason"] == "end_turn") == ("MISS", fault is Fault.PAUSE)
    if not form:
        assert "detail=abort" in answer.headers["Cache-Status"]
    proxy.stats()
    assert [kind(ask(proxy, PATH, body)) for _ in range(2)] == ["MISS", "HIT"]


@pytest.mark.one_way
def test_aborts_at_random(simulator: Simulator, proxy: Proxy) -> None:
    """Whatever is aborted amid whatever else, what is stored is whole."""
    dice = random.Random(1)
    bodies = [{**CALL, "temperature": 0, "max_tokens": 20, "system": f"{k}"} for k in range(12)]

    def call(number: int) -> None:
        form = {"stream": True} if number % 2 else {}
        requests.post(proxy.url + BETA, json={**bodies[number % 12], **form}, timeout=60)

    def is_over(calls: list[Future[None]]) -> bool:
        simulator.release()
        return all(each.done() for each in calls)

    with ThreadPoolExecutor(8) as clients:
        for path, asked in ABORTS * 2:
            simulator.faults += dice.choices([Fault.PAUSE, Fault.HOLD], k=10)
            calls = [clients.submit(call, number) for number in range(12)]
            until(lambda: len(simulator.jobs) >= 4)  # those that nothing was stored for
            assert post(proxy, path, asked).status_code == 200
            requests.post(f"{simulator.url}/continue_generation", json={}, timeout=30)
            simulator.faults.clear()
            until(partial(is_over, calls))
            proxy.stats()
            for body in bodies:
                known = post(proxy, PATH, body, headers={"Cache-Control": "only-if-cached"})
                if known.status_code == 200:
                    whole = requests.post(simulator.url + PATH, json=body, timeout=60).json()
                    assert known.json()["content"] == whole["content"]
            post(proxy, "/cache/clear", None)
    assert proxy.stats()["not_stored"]["abort"] > 0


ABORTS: list[tuple[str, dict[str, Any]]] = [
    ("/abort_request", {"abort_all": True}), ("/abort_request", {"rid": ""}),
    ("/pause_generation", {}),
]  # fmt: skip


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each("fault", [Fault.CUT, Fault.ERROR_BODY, Fault.ERROR_EVENT, Fault.ERROR_503])
def test_failures(fault: Fault, form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """What has failed is not stored."""
    body = {**CALL, "failed": [fault, len(form)], **form}
    simulator.faults.append(fault)
    try:
        ask(proxy, PATH, body)
    except requests.RequestException:
        assert fault is Fault.CUT
    assert [kind(ask(proxy, PATH, body)) for _ in range(2)] == ["MISS", "HIT"]


def test_keys(start_proxy: StartProxy) -> None:
    """A stored answer is for those alone whom the server lets ask."""
    with running(Profile(api_key="secret")) as simulator:
        proxy = start_proxy(simulator.url)
        mine = {"Authorization": "Bearer secret", "anthropic-version": "2023-06-01"}
        assert [kind(ask(proxy, PATH, CALL, mine)) for _ in range(2)] == ["MISS", "HIT"]
        for more in ({}, {"x-api-key": "secret"}, {"Authorization": "Bearer other"}):
            headers = {"anthropic-version": "2023-06-01", **more}
            assert ask(proxy, PATH, CALL, headers).status_code == 401


def test_offline(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What was answered is on disk, and given where there is no server; with `--no-messages` calls
    are passed on."""
    first = start_proxy(simulator.url)
    streamed = {**CALL, "stream": True}
    before = [ask(first, BETA, streamed), ask(first, COUNT, CALL)]
    mine = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
    assert kind(ask(first, PATH, streamed)) == "HIT"  # it is open to everybody
    named = ask(first, PATH, CALL, mine)
    assert [kind(answer) for answer in (*before, named)] == ["MISS"] * 3
    first.stop()
    simulator.down()
    again = start_proxy(simulator.url)
    answer = ask(again, PATH, CALL, mine)
    assert (kind(answer), answer.content) == ("HIT", named.content)
    again.stop()
    simulator.up()
    offline = start_proxy(simulator.url, "--mode", "offline")
    for (path, body), given in zip(((PATH, streamed), (COUNT, CALL)), before, strict=True):
        answer = ask(offline, path, body)
        assert (kind(answer), answer.content) == ("HIT", given.content)
    assert ask(offline, PATH, {**CALL, "max_tokens": 9}).status_code == 504
    offline.stop()
    off = start_proxy(simulator.url, "--no-messages")
    for path in (PATH, BETA):
        answers = [post(off, path, CALL) for _ in range(2)]
        assert answers[0].json()["id"] != answers[1].json()["id"]
        assert all("X-Cache" not in answer.headers for answer in answers)
    assert kind(ask(off, COUNT, CALL)) == "HIT"


def wants_a_version(heard: Heard) -> bytes:
    """What a server says that refuses calls of Anthropic's API without a version of it."""
    if heard.target == "/model_info":
        return whole("200 OK", json.dumps({"model_path": "m", "weight_version": "default"}))
    if not heard.target.startswith(PATH):
        return whole("404 Not Found", "{}")
    if "anthropic-version" not in heard.fields:
        return whole("400 Bad Request", json.dumps({"type": "error", "error": {"message": "no"}}))
    (pair,) = corpus("messages-anthropic")
    return whole("200 OK", pair["response"]["body"])


def test_a_server_that_wants_a_version(start_proxy: StartProxy) -> None:
    """A client without a key is answered from the cache by a server that refuses each call without
    `anthropic-version`; the server itself refuses who says none."""
    with hearing() as upstream:
        upstream.answer = wants_a_version
        proxy = start_proxy(upstream.url)
        said = {"anthropic-version": "2023-06-01"}
        answers = [ask(proxy, PATH, CALL, said) for _ in range(2)]
        assert [kind(answer) for answer in answers] == ["MISS", "HIT"]
        assert post(proxy, PATH, CALL).status_code == 400
