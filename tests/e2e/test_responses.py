"""OpenAI's `/v1/responses`: one sample a call, streams of named events, state that a server keeps,
and prompts that have the date."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, until
from tests.e2e.calls import ask, post
from tests.e2e.test_messages import POOL, events, generations, kind, under_way
from tests.simulator import Fault, Profile, Simulator, running
from tests.tables import each

PATH = "/v1/responses"
CALL: dict[str, Any] = {"model": "m", "input": "one two", "max_output_tokens": 10}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "weather", "parameters": CITY}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "items": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "one"}]}],
        "instructions": "Be brief.",
    },
    "thinking": {"reasoning": {"effort": "low"}, "temperature": 0},
    "tools": {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 66},
    "a format": {"text": {"format": {"type": "text"}}, "top_p": 1},
}


def response(answer: requests.Response) -> Any:
    """What a stream comes to, as OpenAI's clients put it together: its last event has all, and it
    is what those before have said."""
    said = events(answer)
    assert [event["sequence_number"] for _, event in said] == list(range(len(said)))
    assert all(event["type"] == name for name, event in said)
    assert [name for name, _ in said[:2]] == ["response.created", "response.in_progress"]
    whole = said[-1][1]["response"]
    done = [event["item"] for name, event in said if name == "response.output_item.done"]
    assert done == whole["output"]
    texts = ["".join(event["delta"] for name, event in said if name.endswith(".delta"))]
    assert "".join(texts) == "".join(map(text, done))
    return whole


def text(item: Any) -> str:
    """What an item says."""
    if item["type"] == "function_call":
        return str(item["arguments"])
    return "".join(part["text"] for part in item["content"])


@pytest.mark.shared
@each("form", FORMS.values(), ids=FORMS)
@each("first", ["json", "stream"])
def test_one_pool(form: dict[str, Any], first: str, simulator: Simulator, proxy: Proxy) -> None:
    """A stream and JSON are of one sample, whichever comes first."""
    body = {**CALL, **form, "not_yet_invented": first}
    calls = [body, {**body, "stream": True}, body, {**body, "stream": True}]
    simulator.received.clear()
    if first == "stream":
        calls.reverse()
    answers = [ask(proxy, PATH, each) for each in calls]
    assert [kind(answer) for answer in answers] == ["MISS", "HIT", "HIT", "HIT"]
    streams = [answer for answer in answers if "event-stream" in answer.headers["content-type"]]
    jsons = [answer for answer in answers if answer not in streams]
    assert jsons[0].content == jsons[1].content
    assert streams[0].content == streams[1].content
    assert response(streams[0]) == jsons[0].json()
    assert b"[DONE]" not in streams[0].content
    assert len(generations(simulator, PATH)) == 1


@pytest.mark.shared
def test_what_is_echoed(simulator: Simulator, proxy: Proxy) -> None:
    """What a call says of its user and of itself is its own in each answer, in each event, and is
    no part of the key."""
    simulator.received.clear()
    for turn, (user, place) in enumerate([("one", "a"), ("two", "b"), ("two", "b")]):
        more = {"user": user, "metadata": {"place": place}, "store": turn > 0}
        named = {"session_id": place, "priority": turn, "client_metadata": {"x": user}}
        for form in ({}, {"stream": True}):
            answer = ask(proxy, PATH, {**CALL, "echoed": True, **form, **more, **named})
            assert kind(answer) == ("MISS" if not turn and not form else "HIT")
            told = [e["response"] for _, e in events(answer) if "response" in e] if form else []
            for said in told or [answer.json()]:
                assert {name: said[name] for name in more} == more
    assert len(generations(simulator, PATH)) == 1
    assert kind(ask(proxy, PATH, {**CALL, "echoed": True})) == "MISS"  # others say other defaults


@pytest.mark.shared
def test_what_differs(simulator: Simulator, proxy: Proxy) -> None:
    """What may change an answer, or is not known, is in the key."""
    for more in ({}, {"instructions": "x"}, {"temperature": 0.5}, {"max_output_tokens": 11},
                 {"truncation": "auto"}, {"reasoning": {"effort": "high"}}, {"include": []},
                 {"parallel_tool_calls": False}, {"surprise": 1}):  # fmt: skip
        body = {**CALL, "differs": True, **more}
        assert [kind(ask(proxy, PATH, body)) for _ in range(2)] == ["MISS", "HIT"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "previous": ({"previous_response_id": "resp_1"}, "state"),
    "background": ({"background": True}, "state"),
    "conversation": ({"conversation": "conv_1"}, "state"),
    "a prompt": ({"prompt": {"id": "p"}}, "state"),
    "an id": ({"request_id": "resp_mine"}, "state"),
    "a reference": ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "state"),
    **{
        name: ({"tools": [TOOL, {"type": name}]}, "server-tools")
        for name in ("web_search", "web_search_preview", "code_interpreter", "file_search", "mcp",
                     "computer_use_preview", "image_generation", "not_yet_invented")
    },
    "a picture": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
        "media-by-reference",
    ),
    "log-probabilities": (
        {"stream": True, "include": ["message.output_text.logprobs"]},
        "stream",
    ),
}  # fmt: skip


@pytest.mark.shared
@each(("more", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(more: dict[str, Any], reason: str, simulator: Simulator, proxy: Proxy) -> None:
    """What a server keeps, does by itself or fetches is passed on, with its reason."""
    before = len(generations(simulator, PATH))
    for _ in range(2):
        answer = post(proxy, PATH, {**CALL, **more})
        assert answer.headers["X-Cache"] == "BYPASS"
        assert f"detail={reason}" in answer.headers["Cache-Status"]
    assert len(generations(simulator, PATH)) == before + 2


@pytest.mark.shared
def test_what_comes_after(simulator: Simulator, proxy: Proxy) -> None:
    """Questions about an answer are passed on."""
    simulator.received.clear()
    for method, path in (("GET", f"{PATH}/resp_1"), ("DELETE", f"{PATH}/resp_1"),
                         ("POST", f"{PATH}/resp_1/cancel")):  # fmt: skip
        answer = requests.request(method, proxy.url + path, timeout=30)
        assert "X-Cache" not in answer.headers
        assert (simulator.received[-1].method, simulator.received[-1].path) == (method, path)


@pytest.mark.one_way
def test_kept_answers(start_proxy: StartProxy) -> None:
    """Where a server keeps answers, or may, only those are cached that it is told not to keep."""
    for profile in (Profile(enable_response_store=True), Profile(info="openai")):
        with running(profile) as simulator:
            proxy = start_proxy(simulator.url)
            for store in ({}, {"store": True}, {"store": None}):
                answers = [post(proxy, PATH, {**CALL, **store}) for _ in range(2)]
                assert [kind(answer) for answer in answers] == ["BYPASS"] * 2
                assert "detail=state" in answers[0].headers["Cache-Status"]
                assert answers[0].json()["id"] != answers[1].json()["id"]
            unkept = [kind(ask(proxy, PATH, {**CALL, "store": False})) for _ in range(2)]
            assert unkept == ["MISS", "HIT"]
            proxy.stop()


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_runs(form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """In a run the k-th call gets the k-th sample, in the other form too, and a second run gets the
    same ones; outside of runs it is the first."""
    body = {**CALL, "runs": len(form)}
    first = [ask(proxy, f"/run/ra{len(form)}{PATH}", {**body, **form}) for _ in range(3)]
    assert [kind(answer) for answer in first] == ["MISS"] * 3
    second = [ask(proxy, f"/run/rb{len(form)}{PATH}", body) for _ in range(3)]
    assert [kind(answer) for answer in second] == ["HIT"] * 3
    said = [response(answer) if form else answer.json() for answer in first]
    assert said == [answer.json() for answer in second]
    assert len({str(one["output"]) for one in said}) == 3
    assert ask(proxy, PATH, body).json() == said[0]
    assert all("n" not in sent for sent in generations(simulator, PATH))


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
def test_collapsing(form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """Equal calls at the same time are one call to the server; streams are read along. What each
    has said of itself is its own also there."""
    body = {**CALL, "together": len(form), **form}
    before = proxy.stats()["followers"]
    first = under_way(simulator, proxy, PATH, {**body, "user": "one"}, Fault.HOLD)
    second = POOL.submit(post, proxy, PATH, {**body, "user": "two"})
    until(lambda: requests.get(f"{proxy.url}/cache/stats", timeout=9).json()["followers"] > before)
    simulator.release()
    answers = [first.result(), second.result()]
    assert [kind(answer) for answer in answers] == ["MISS", "COLLAPSED"]
    said = [response(answer) if form else answer.json() for answer in answers]
    assert [one["user"] for one in said] == ["one", "two"]
    assert said[0]["output"] == said[1]["output"]
    assert sum(sent.get("together") == len(form) for sent in generations(simulator, PATH)) == 1


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each("fault", [Fault.PAUSE, Fault.HOLD])
def test_aborts(fault: Fault, form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """Where an abort passes while a call is under way, nothing of that is stored, whatever the
    answer says of itself."""
    body = {**CALL, "aborted": [fault, len(form)], **form}
    call = under_way(simulator, proxy, PATH, body, fault)
    rid = {"abort_all": True} if fault is Fault.PAUSE else {"rid": "nobody's"}
    assert post(proxy, "/abort_request", rid).status_code == 200
    simulator.release()
    answer = call.result()
    whole = response(answer) if form else answer.json()
    assert (kind(answer), whole["status"]) == (
        "MISS",
        "failed" if fault is Fault.PAUSE else "incomplete",
    )
    proxy.stats()
    assert [kind(ask(proxy, PATH, body)) for _ in range(2)] == ["MISS", "HIT"]


@pytest.mark.shared
@each("form", [{}, {"stream": True}], ids=["json", "stream"])
@each("fault", [Fault.CUT, Fault.ERROR_BODY, Fault.ERROR_EVENT, Fault.ERROR_503, Fault.ABORT])
def test_failures(fault: Fault, form: dict[str, Any], simulator: Simulator, proxy: Proxy) -> None:
    """What has failed is not stored."""
    body = {**CALL, "failed": [fault, len(form)], **form}
    simulator.faults.append(fault)
    try:
        ask(proxy, PATH, body)
    except requests.RequestException:
        assert fault is Fault.CUT
    assert [kind(ask(proxy, PATH, body)) for _ in range(2)] == ["MISS", "HIT"]


def test_offline(simulator: Simulator, start_proxy: StartProxy) -> None:
    """What was answered is on disk, and given where there is no server."""
    first = start_proxy(simulator.url)
    streamed = {**CALL, "stream": True}
    before = ask(first, PATH, streamed)
    assert kind(before) == "MISS"
    first.stop()
    offline = start_proxy(simulator.url, "--mode", "offline")
    answer = ask(offline, PATH, streamed)
    assert (kind(answer), answer.content) == ("HIT", before.content)
    assert ask(offline, PATH, CALL).json() == response(before)
    assert ask(offline, PATH, {**CALL, "max_output_tokens": 9}).status_code == 504
