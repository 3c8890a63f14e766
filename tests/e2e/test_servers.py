"""Servers that are not SGLang, each as it was recorded: what is given again has their form, and is
of the model that they have."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, cache_status, until
from tests.e2e.calls import CHAT, COMPLETIONS, post
from tests.servers.stand_in import NAMES, WITHOUT_N, StandIn, standing_in

USAGE = {"stream": True, "stream_options": {"include_usage": True}}
FORMS: dict[str, dict[str, Any]] = {"json": {}, "stream": {"stream": True}, "usage": USAGE}
PATHS = {"chat": CHAT, "completions": COMPLETIONS}


def asking(path: str, text: str, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"prompt": text}
    if path == CHAT:
        content = {"messages": [{"role": "user", "content": text}]}
    return {"model": "tiny", "max_tokens": 4, "temperature": 1, **content, **more}


def said(answer: requests.Response) -> Any:
    """What an answer says: a document, or the data of each event."""
    assert answer.status_code == 200
    if answer.text.startswith("{"):
        return answer.json()
    assert answer.text.endswith("data: [DONE]\n\n")
    lines = answer.text.removesuffix("data: [DONE]\n\n").split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def texts(answer: requests.Response) -> list[str]:
    """What each choice of an answer says."""
    found: dict[int, str] = {}
    document = said(answer)
    for one in document if isinstance(document, list) else [document]:
        for choice in one["choices"]:
            holder = choice.get("delta") or choice.get("message") or choice
            text = holder.get("content") or holder.get("text") or ""
            found[choice["index"]] = found.get(choice["index"], "") + text
    return [found[index] for index in sorted(found)]


def call(proxy: Proxy, path: str, body: dict[str, Any]) -> requests.Response:
    """The answer to a call, once it is known whether it is stored."""
    answer = post(proxy, path, body)
    proxy.stats()
    return answer


def repeated(name: str, kind: str, form: str, n: int) -> str:
    """What becomes of such a call when it is repeated."""
    if n == 1 or name == "vllm":
        return "HIT"
    # llama.cpp tells what one of the choices came to; of completions, each tells its own.
    has_total = form == "json" or (kind, form) == ("chat", "usage")
    return "MISS" if has_total else "HIT"


@pytest.mark.parametrize("name", NAMES)
def test_the_form_of_answers(name: str, start_proxy: StartProxy) -> None:
    """What comes through, and what is given again, is what the server itself says: each member of
    each document and of each event, with no other beside them."""
    with standing_in(name) as server:
        proxy = start_proxy(server.url)
        seed = 0
        for kind, path in PATHS.items():
            for form, more in FORMS.items():
                for n in (1, 2):
                    seed += 10
                    body = asking(path, f"{form} {n}", n=n, seed=seed, **more)
                    direct = said(requests.post(server.url + path, json=body, timeout=30))
                    kinds = ("MISS", repeated(name, kind, form, n))
                    if name in WITHOUT_N and n > 1:
                        kinds = ("BYPASS", "BYPASS")
                    for expected in kinds:
                        answer = call(proxy, path, body)
                        row = (name, kind, form, n, cache_status(answer.headers))
                        assert (answer.headers["X-Cache"], row) == (expected, row)
                        assert (said(answer), row) == (direct, row)


def by_choice(events: list[Any]) -> list[list[Any]]:
    """The events of each choice, and then those of the whole answer."""
    found: dict[int, list[Any]] = {}
    for event in events:
        found.setdefault(event["choices"][0]["index"] if event["choices"] else 99, []).append(event)
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("name", ["vllm", "llama_cpp"])
def test_a_pool_with_a_seed(name: str, start_proxy: StartProxy) -> None:
    """The next samples of a pool with a seed are those that the server has for these places, and
    none of them is the first one again."""
    with standing_in(name) as server:
        proxy = start_proxy(server.url)
        forms = [{"stream": True}, *([{}, USAGE] if name == "vllm" else [])]
        for path, form in itertools.product(PATHS.values(), forms):
            for n, expected in (
                (1, "MISS"),
                (3, "PARTIAL"),
                (3, "HIT"),
                (2, "HIT"),
                (4, "PARTIAL"),
            ):
                body = asking(path, "a", n=n, seed=7, **form)
                answer = call(proxy, path, body)
                assert answer.headers["X-Cache"] == expected
                assert texts(answer) == [f"seed {7 + k}!" for k in range(n)]
                direct = requests.post(server.url + path, json=body, timeout=30)
                if form:
                    assert by_choice(said(answer)) == by_choice(said(direct))
                else:
                    assert said(answer) == said(direct)


@pytest.mark.parametrize("name", NAMES)
def test_a_pool_without_a_seed(name: str, start_proxy: StartProxy) -> None:
    """Without a seed, what is short is drawn, and comes behind what is stored. A server to which
    `n` says nothing is asked itself."""
    with standing_in(name) as server:
        proxy = start_proxy(server.url)
        for path in PATHS.values():
            body = asking(path, "a", stream=True)
            (first,) = texts(call(proxy, path, body))
            more, again = (call(proxy, path, {**body, "n": 3}) for _ in range(2))
            if name in WITHOUT_N:
                assert cache_status(again.headers).endswith("fwd=bypass; detail=one-choice")
                assert len(texts(again)) == 1
                continue
            assert again.headers["X-Cache"] == "HIT"
            assert by_choice(said(again)) == by_choice(said(more))
            assert texts(again)[0] == first
            assert len(set(texts(again))) == 3


@pytest.mark.parametrize("name", NAMES)
def test_events_between(name: str, start_proxy: StartProxy) -> None:
    """Comments, names of events, ids and events that say nothing come through as they are, and keep
    nothing from being stored; an event of another name does."""
    with standing_in(name) as server:
        proxy = start_proxy(server.url)
        empty = b'data: {"id":"x","choices":[]}\n\n'
        for k, between in enumerate((b": ping\n\n", b"event: message\n", b"id: 7\n", empty)):
            server.between = between
            body = asking(CHAT, f"{k}", seed=k, stream=True)
            direct = requests.post(server.url + CHAT, json=body, timeout=30)
            first, second = (call(proxy, CHAT, body) for _ in range(2))
            assert first.content == direct.content
            kinds = [one.headers["X-Cache"] for one in (first, second)]
            assert kinds == ["MISS", "HIT"]
            assert said(second) == said(direct)
        server.between = b"event: progress\ndata: {}\n\n"
        body = asking(CHAT, "named", seed=1, stream=True)
        kinds = [call(proxy, CHAT, body).headers["X-Cache"] for _ in range(2)]
        assert kinds == ["MISS", "MISS"]
        assert proxy.stats()["not_stored"] == {"unreadable-answer": 2}


def test_rules_that_leave_something_out(start_proxy: StartProxy) -> None:
    """Streams are kept apart from JSON answers where rules leave something out of the key, too."""
    with standing_in("vllm") as server:
        proxy = start_proxy(server.url, "--ignore", "messages[*].content=[0-9]+")
        kinds = []
        for text, more in (("at 1", {}), ("at 2", USAGE), ("at 3", {}), ("at 4", USAGE)):
            body = asking(CHAT, text, seed=7, **more)
            answer = call(proxy, CHAT, body)
            assert said(answer) == said(requests.post(server.url + CHAT, json=body, timeout=30))
            kinds.append(answer.headers["X-Cache"])
        assert kinds == ["MISS", "MISS", "HIT", "HIT"]


@pytest.mark.parametrize("name", NAMES)
def test_how_samples_end(name: str, start_proxy: StartProxy) -> None:
    """A sample is stored however it has ended, unless it was aborted, or has not."""
    with standing_in(name) as server:
        proxy = start_proxy(server.url)
        stored = ("stop", "length", "tool_calls", "eos_token", "stop_sequence", "content_filter")
        not_stored = ("abort", "error", None)
        for k, finish in enumerate((*stored, *not_stored)):
            server.changes = {"finish_reason": finish}
            for form, more in FORMS.items():
                body = asking(CHAT, f"{form} {finish}", seed=k, **more)
                first, second = (call(proxy, CHAT, body) for _ in range(2))
                assert said(first) == said(second)
                expected = "HIT" if finish in stored else "MISS"
                assert (second.headers["X-Cache"], form, finish) == (expected, form, finish)


def _model(server: StandIn) -> Any:
    return server.about["/v1/models"]["data"][0]


def fingerprint(proxy: Proxy) -> Any:
    """The name of the model by now, when there is traffic."""
    post(proxy, CHAT, asking(CHAT, "never stored"), headers={"Cache-Control": "only-if-cached"})
    return proxy.info()["model"]["fingerprint"]


CHANGES: dict[str, list[Callable[[StandIn], object]]] = {
    "vllm": [
        lambda server: _model(server).update(root="/models/another"),
        lambda server: _model(server).update(max_model_len=512),
        lambda server: server.about["/version"].update(version="0.33.0"),
    ],
    "llama_cpp": [
        lambda server: server.about["/props"].update(model_path="another.gguf"),
        lambda server: _model(server)["meta"].update(n_params=7),
    ],
    "tgi": [lambda server: server.about["/info"].update(model_sha="another")],
    "ollama": [
        lambda server: server.about["/api/tags"]["models"][0].update(digest="another"),
        lambda server: _model(server).update(created=1_760_000_001),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_another_model_of_the_same_name(name: str, start_proxy: StartProxy) -> None:
    """Where a server shows any difference, no answer of the former model is given, and those of a
    model that comes back are."""
    with standing_in(name) as server:
        proxy = start_proxy(server.url, "--poll-seconds", "0.1")
        body = asking(CHAT, "a")
        former = texts(call(proxy, CHAT, body))
        assert texts(call(proxy, CHAT, body)) == former
        for change in CHANGES[name]:
            before = fingerprint(proxy)
            change(server)
            until(lambda before=before: fingerprint(proxy) != before)
            new = texts(call(proxy, CHAT, body))
            assert new != former
            former = new
