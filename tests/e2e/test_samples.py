"""Samples that serve other calls than the one that brought them: with their own counts, drawn as
upstream would have drawn them, and all that was told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, StartProxy, cache_status
from tests.e2e.calls import CHAT, COMPLETIONS, forms, post, sampled
from tests.hearing import Answering, Upstream, serving
from tests.simulator import Profile, Simulator, is_probe, running

pytestmark = pytest.mark.one_way

PROMPTS = ["import os", "one two three four five", "a longer one, of very many words, or so"]


def asking(path: str, text: Any, **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"prompt": text}
    if path == CHAT:
        content = {"messages": [{"role": "user", "content": text}]}
    return {"model": "m", "max_tokens": 40, "temperature": 0, **content, **more}


def events(answer: requests.Response) -> list[Any]:
    assert answer.text.endswith("data: [DONE]\n\n")
    return [json.loads(event[6:]) for event in answer.text.split("\n\n")[:-2]]


def bare(answer: Any) -> Any:
    """An answer, but for what differs from one call to the next."""
    return {name: value for name, value in answer.items() if name not in ("id", "created")}


@pytest.mark.parametrize("form", ["json", "stream"])
def test_usage_of_a_list(form: str, simulator: Simulator, proxy: Proxy) -> None:
    """Of a list that was taken apart, each prompt had a share of the tokens that was a guess."""
    whole = asking(COMPLETIONS, PROMPTS, n=2)
    if form == "stream":
        whole |= {"stream": True, "stream_options": {"include_usage": True}}
    assert post(proxy, COMPLETIONS, whole).headers["X-Cache"] == "MISS"
    for text in PROMPTS:
        for n in (1, 2):
            alone = post(proxy, COMPLETIONS, asking(COMPLETIONS, text, n=n))
            assert alone.headers["X-Cache"] == "HIT"
            direct = requests.post(
                f"{simulator.url}{COMPLETIONS}", json=asking(COMPLETIONS, text, n=n), timeout=30
            )
            assert bare(alone.json()) == bare(direct.json())
    direct = requests.post(
        f"{simulator.url}{COMPLETIONS}", json=asking(COMPLETIONS, PROMPTS, n=2), timeout=30
    )
    assert bare(post(proxy, COMPLETIONS, asking(COMPLETIONS, PROMPTS, n=2)).json()) == (
        bare(direct.json())
    )


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("form", ["json", "stream"])
def test_what_is_asked_for_is_not_told(
    path: str, form: str, simulator: Simulator, proxy: Proxy
) -> None:
    """A client sees the members that it has asked for, the first time and later, and no others."""
    stream = {"stream": True} if form == "stream" else {}
    for more in ({}, {"stream_options": {"continuous_usage_stats": True}} if stream else
                 {"return_meta_info": True, "return_token_ids": True}):  # fmt: skip
        body = asking(path, f"tell {form} {more}", n=3, **stream, **more)
        direct = requests.post(simulator.url + path, json=body, timeout=30)
        first, second = post(proxy, path, body), post(proxy, path, body)
        kinds = [answer.headers["X-Cache"] for answer in (first, second)]
        assert kinds == ["MISS", "HIT"]
        shapes = [shape(answer) for answer in (direct, first, second)]
        assert shapes[0] == shapes[1] == shapes[2]
    (first_sent, *_) = sampled(simulator)
    assert first_sent.keys() == asking(path, "", n=3, **stream).keys()


def shape(answer: requests.Response) -> Any:
    """An answer, or the events of each choice, without what is another one each time."""
    noise = {"id", "created", "e2e_latency", "response_sent_to_client_ts"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(member) for name, member in value.items() if name not in noise}
        return [plain(member) for member in value] if isinstance(value, list) else value

    if answer.text.startswith("{"):
        return plain(answer.json())
    return sorted(json.dumps(plain(event)) for event in events(answer))


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_by_default(path: str, start_proxy: StartProxy) -> None:
    """A server that ends its streams with their usage unasked still does."""
    with running(Profile(stream_response_default_include_usage=True)) as upstream:
        proxy = start_proxy(upstream.url)
        for more in ({}, {"stream_options": {"include_usage": False}}):
            body = asking(path, f"usage {more}", stream=True, **more)
            direct = events(requests.post(upstream.url + path, json=body, timeout=30))
            for kind in ("MISS", "HIT"):
                answer = post(proxy, path, body)
                assert answer.headers["X-Cache"] == kind
                assert events(answer)[-1]["usage"] == direct[-1]["usage"]


# Other servers


class Other(Upstream):
    """A server that is not SGLang: its samples are functions of the seed, as those of vLLM are."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.is_strict = False
        """It refuses what it does not know."""
        self.bodies: list[dict[str, Any]] = []
        super().__init__(OtherHandler)


class OtherHandler(Answering):
    server: Other

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.send_error(404)
            return
        entry = {"id": "m", "object": "model", "owned_by": self.server.owner}
        self.reply(200, {"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        data = self.body()
        try:
            body = json.loads(data)
            prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        except (ValueError, KeyError):
            self.send_error(400)
            return
        if not is_probe(data):
            self.server.bodies.append(body)
        options = body.get("stream_options") or {}
        if self.server.is_strict and {"return_token_ids", "continuous_usage_stats"} & {
            *body,
            *options,
        }:
            self.send_error(400)
            return
        n, seed = body.get("n", 1), body.get("seed", 0)
        texts = [f"{prompt} {seed + k}" for k in range(n)]
        if body.get("stream"):
            self.stream(texts)
            return
        choices: list[dict[str, Any]] = [
            {"index": k, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
             "logprobs": None, "token_ids": None}
            for k, text in enumerate(texts)
        ]  # fmt: skip
        if body.get("return_token_ids") and self.server.owner == "vllm":
            for k, choice in enumerate(choices):
                choice["token_ids"] = [7] * (3 + k)
        completion = sum(3 + k for k in range(n))
        usage = {"prompt_tokens": 5, "completion_tokens": completion,
                 "total_tokens": 5 + completion}  # fmt: skip
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
        self.reply(200, {**head, "choices": choices, "usage": usage, "prompt_token_ids": None})

    def stream(self, texts: list[str]) -> None:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        said = []
        for k, text in enumerate(texts):
            for tokens, delta in enumerate(({"role": "assistant", "content": ""},
                                            {"content": text})):  # fmt: skip
                choice = {"index": k, "delta": delta, "logprobs": None, "finish_reason": None}
                counts = {"prompt_tokens": 5, "completion_tokens": tokens * (3 + k)}
                said.append({**head, "choices": [choice], "usage": counts})
        for k in range(len(texts)):
            choice = {"index": k, "delta": {}, "logprobs": None, "finish_reason": "stop"}
            said.append({**head, "choices": [choice], "timings": {"k": k}})
        completion = sum(3 + k for k in range(len(texts)))
        usage = {"prompt_tokens": 5, "completion_tokens": completion,
                 "total_tokens": 5 + completion}  # fmt: skip
        said.append({**head, "choices": [], "usage": usage, "citations": ["x"]})
        data = b"".join(b"data: %b\n\n" % json.dumps(e, separators=(",", ":")).encode()
                        for e in said) + b"data: [DONE]\n\n"  # fmt: skip
        self.reply(200, data, "text/event-stream")


@pytest.fixture
def vllm() -> Iterator[Other]:
    with serving(Other("vllm")) as server:
        yield server


def heard(answer: requests.Response) -> list[str]:
    """What each choice says."""
    if answer.text.startswith("{"):
        return [choice["message"]["content"] for choice in answer.json()["choices"]]
    said: dict[int, str] = {}
    for event in events(answer):
        for choice in event["choices"]:
            text = said.setdefault(choice["index"], "")
            said[choice["index"]] = text + (choice["delta"].get("content") or "")
    return [said[index] for index in sorted(said)]


@forms
def test_seeds(form: Any, vllm: Other, start_proxy: StartProxy) -> None:
    """With a seed, the second sample is that of seed + 1, also where the first is stored."""
    proxy = start_proxy(vllm.url)
    for n, kind in ((1, "MISS"), (3, "PARTIAL"), (3, "HIT"), (2, "HIT"), (4, "PARTIAL")):
        answer = post(proxy, CHAT, asking(CHAT, "a", n=n, seed=10, **form))
        assert answer.headers["X-Cache"] == kind
        assert heard(answer) == [f"a {10 + k}" for k in range(n)]
    if not form:
        usage = {"prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23}
        assert answer.json()["usage"] == usage


def test_members_that_others_have(vllm: Other, start_proxy: StartProxy) -> None:
    """What only some servers say is given again where they have said it."""
    proxy = start_proxy(vllm.url)
    body = asking(CHAT, "a", n=2, seed=1)
    direct = requests.post(f"{vllm.url}{CHAT}", json=body, timeout=30).json()
    for kind in ("MISS", "HIT"):
        answer = post(proxy, CHAT, body)
        assert (answer.headers["X-Cache"], answer.json()) == (kind, direct)
    body = asking(CHAT, "b", n=2, seed=1, stream=True)
    first, second = (post(proxy, CHAT, body) for _ in range(2))
    assert [a.headers["X-Cache"] for a in (first, second)] == ["MISS", "HIT"]
    ends = [[e for e in events(a) if e["choices"] and e["choices"][0]["finish_reason"]]
            for a in (first, second)]  # fmt: skip
    assert [[e["timings"] for e in end] for end in ends] == [[{"k": 0}, {"k": 1}]] * 2
    assert events(second)[-1] == events(first)[-1]
    assert events(second)[-1]["citations"] == ["x"]
    # How it would have said that in JSON is known to it alone.
    again = post(proxy, CHAT, asking(CHAT, "b", n=2, seed=1))
    assert again.headers["X-Cache"] == "MISS"


def test_usage_that_is_not_told(start_proxy: StartProxy) -> None:
    """An answer of many samples is not taken apart with numbers that are guesses."""
    with serving(Other("somebody")) as other:
        proxy = start_proxy(other.url)
        body = asking(CHAT, "a", n=2, seed=1)
        direct = requests.post(f"{other.url}{CHAT}", json=body, timeout=30)
        for _ in range(2):
            answer = post(proxy, CHAT, body)
            assert answer.content == direct.content
            assert cache_status(answer.headers) == "sglang-cached; fwd=miss; detail=shared-usage"
        # A server that is not known is asked for nothing that it may refuse.
        assert other.bodies == [body] * 3
        one = asking(CHAT, "b", seed=1)
        kinds = [post(proxy, CHAT, one).headers["X-Cache"] for _ in range(2)]
        assert kinds == ["MISS", "HIT"]


@forms
def test_a_server_that_is_strict(form: Any, vllm: Other, start_proxy: StartProxy) -> None:
    """A client is not refused what it has not asked for."""
    vllm.is_strict = True
    proxy = start_proxy(vllm.url)
    body = asking(CHAT, "a", n=2, seed=1, **form)
    direct = requests.post(f"{vllm.url}{CHAT}", json=body, timeout=30)
    answer = post(proxy, CHAT, body)
    assert (answer.status_code, answer.content) == (200, direct.content)
    # In a stream that nobody wants to be counted, nothing needs to be told.
    assert answer.headers["X-Cache"] == ("MISS" if form else "BYPASS")
    body = asking(CHAT, "b", seed=1, **form)
    kinds = [post(proxy, CHAT, body).headers["X-Cache"] for _ in range(2)]
    assert kinds == ["MISS", "HIT"]


def test_a_prompt_twice_with_a_seed(vllm: Other, start_proxy: StartProxy) -> None:
    """The same sample twice is not kept as two."""
    proxy = start_proxy(vllm.url)
    body = asking(COMPLETIONS, ["a", "a"], seed=1)
    answer = post(proxy, COMPLETIONS, body)
    assert "detail=inseparable" in answer.headers["Cache-Status"]
