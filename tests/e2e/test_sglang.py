"""What a user relies on, end to end: against the simulator, or against a real server.

`make test-sglang URL=http://host:port` runs this file against that server (SGLANG_URL).
Only what both can show is here.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import isclose
from typing import Any

import pytest
import requests

from tests.conftest import Proxy, cache_status
from tests.e2e.calls import BODIES, asking, greedy, json_texts
from tests.tables import each

Post = Callable[..., requests.Response]

_numbers = itertools.count()

WORDS = (
    "one",
    "two",
    "three",
    "def",
    "class",
    "import",
    "return",
    "self",
    "for",
    "in",
    "print",
    "a",
)


def prompt(words: str = "Once upon a time") -> str:
    """A prompt that no other test has used."""
    return f"{os.getpid()} {next(_numbers)} {words}"


@pytest.fixture
def post(front: Proxy) -> Post:
    def send(path: str, body: Any, **kwargs: Any) -> requests.Response:
        return requests.post(front.url + path, json=body, timeout=60, **kwargs)

    return send


def texts(path: str, answer: Any) -> list[str]:
    """The generated texts of an answer, in order."""
    found = json_texts(path, answer)
    assert list(found) == list(range(len(found)))
    return list(found.values())


generate, completion, chat = (partial(asking, path) for path in BODIES)


@each("path", BODIES)
def test_repeat_hits(path: str, post: Post) -> None:
    """The second of two equal requests is answered from the cache, byte for byte."""
    body = asking(path, prompt())
    first, second = post(path, body), post(path, body)
    assert first.headers["X-Cache"] == "MISS"
    assert cache_status(first.headers) == "sglang-cached; fwd=miss; stored"
    assert second.headers["X-Cache"] == "HIT"
    assert cache_status(second.headers) == "sglang-cached; hit"
    assert int(second.headers["Age"]) >= 0
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]


def test_shapes_of_generate(post: Post) -> None:
    """n=1 is an object; n>1 and every list are arrays, from upstream and from the cache."""
    text = prompt()
    for body, shape in (
        (generate(text), dict),
        (generate(text, 2), list),
        (generate([text]), list),
        (generate([text], 3), list),
        (generate(text), dict),
    ):
        assert isinstance(post("/generate", body).json(), shape)


@each("path", ["/generate", "/v1/completions"])
def test_ragged_batch(path: str, post: Post) -> None:
    """Items that are short of different numbers of samples are filled, prompt-major."""
    a, b = prompt("a"), prompt("b")
    batch = [a, b]
    first = texts(path, post(path, asking(path, a, 2)).json())
    body = asking(path, batch, 3)
    answer = post(path, body)
    assert answer.headers["Cache-Status"].endswith('detail="2 of 6 stored"')
    got = texts(path, answer.json())
    assert len(got) == 6
    assert got[:2] == first
    hit = post(path, body)
    assert hit.headers["X-Cache"] == "HIT"
    assert texts(path, hit.json()) == got
    if path == "/v1/completions":
        usage = hit.json()["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_repeated_prompt_in_a_batch(post: Post) -> None:
    """A prompt that stands twice in a list gets two samples, as SGLang gives it."""
    text = prompt()
    got = texts("/generate", post("/generate", generate([text, text])).json())
    assert texts("/generate", post("/generate", generate(text, 2)).json()) == got
    assert post("/generate", generate([text, text])).headers["X-Cache"] == "HIT"


def test_rids(post: Post) -> None:
    """A client's rid is echoed from upstream and from the cache, and never another client's."""
    text = prompt()
    for rid in ("mine", "yours"):
        assert post("/generate", generate(text, rid=rid)).json()["meta_info"]["id"] == rid
    anonymous = post("/generate", generate(text)).json()["meta_info"]["id"]
    assert anonymous not in ("mine", "yours")
    batch = [text, prompt()]
    for _ in range(2):
        got = post("/generate", generate(batch, rid="b")).json()
        assert [native["meta_info"]["id"] for native in got] == ["b_0", "b_1"]
    got = post("/generate", generate(batch, rid=["r1", "r2"])).json()
    assert [native["meta_info"]["id"] for native in got] == ["r1", "r2"]
    body = chat(text, return_meta_info=True)
    for rid in ("c1", "c2"):
        answer = post("/v1/chat/completions", {**body, "rid": rid}).json()
        assert (answer["id"], answer["choices"][0]["meta_info"]["id"]) == (rid, rid)


def test_same_rid_in_flight(post: Post) -> None:
    """Two calls in flight may share a rid, though SGLang alone refuses the second."""
    bodies = [generate(prompt(), rid="shared") for _ in range(4)]
    for body in bodies:
        body["sampling_params"]["max_new_tokens"] = 64
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: post("/generate", body), bodies))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.json()["meta_info"]["id"] for answer in answers} == {"shared"}


def test_per_item_sampling_params(post: Post) -> None:
    """In a batch, each prompt keeps its own parameters, however the batch is trimmed."""
    a, b, c = prompt("a"), prompt("b"), prompt("c")

    def body(items: list[tuple[str, int]]) -> dict[str, Any]:
        given = {"temperature": 0.9, "ignore_eos": True}
        params = [{**given, "max_new_tokens": tokens} for _, tokens in items]
        return {"text": [text for text, _ in items], "sampling_params": params}

    post("/generate", body([(b, 3)]))
    answer = post("/generate", body([(a, 2), (b, 3), (c, 4)]))
    assert answer.headers["X-Cache"] == "PARTIAL"
    got = [native["meta_info"]["completion_tokens"] for native in answer.json()]
    assert got == [2, 3, 4]
    alone = {"temperature": 0.9, "max_new_tokens": 4, "ignore_eos": True}
    single = {"text": c, "sampling_params": alone}
    assert post("/generate", single).headers["X-Cache"] == "HIT"


def test_token_ids(post: Post) -> None:
    """Prompts as token ids are cached like text: single and in batches."""
    number = next(_numbers) + 100
    params = {"temperature": 0.9, "max_new_tokens": 4}
    one = {"input_ids": [number, 20, 30], "sampling_params": params}
    assert post("/generate", one).headers["X-Cache"] == "MISS"
    batch = {"input_ids": [[number, 20, 30], [number, 21]], "sampling_params": params}
    assert post("/generate", batch).headers["X-Cache"] == "PARTIAL"
    assert post("/v1/completions", completion([number, 20, 30])).headers["X-Cache"] == "MISS"
    both = completion([[number, 20, 30], [number, 21]])
    assert post("/v1/completions", both).headers["X-Cache"] == "PARTIAL"


def test_logprobs(post: Post) -> None:
    """Logprobs survive the cache, and an answer without them does not serve a call with them."""
    text = prompt()
    post("/generate", generate(text))
    for kind in ("MISS", "HIT"):
        answer = post("/generate", generate(text, return_logprob=True, top_logprobs_num=2))
        assert answer.headers["X-Cache"] == kind
        assert len(answer.json()["meta_info"]["output_token_logprobs"]) == 8
    for n, kind in ((1, "MISS"), (2, "PARTIAL"), (2, "HIT")):
        answer = post("/v1/chat/completions", chat(text, logprobs=True, top_logprobs=2, n=n))
        assert answer.headers["X-Cache"] == kind
        for choice in answer.json()["choices"]:
            assert choice["logprobs"]["content"]


BAD = [
    ("/generate", b"{not json"),
    ("/generate", b'{"text": "a"} trailing'),
    ("/generate", b'{"text": "a", "sampling_params": {"n": "2", "max_new_tokens": 2}}'),
    ("/generate", b'{"text": "a", "sampling_params": {"n": 2.0, "max_new_tokens": 2}}'),
    ("/generate", b'{"text": "a", "stream": 1, "sampling_params": {"max_new_tokens": 2}}'),
    ("/generate", b'{"sampling_params": {"max_new_tokens": 2}}'),
    ("/v1/completions", b'{"model": "m", "prompt": "a", "n": 0}'),
    ("/v1/completions", b'{"model": "m", "prompt": "a", "n": "x"}'),
    ("/v1/chat/completions", b'{"model": "m"}'),
    ("/v1/chat/completions", b'{"model": "m", "messages": [], "n": null}'),
]


@each(("path", "body"), BAD)
def test_bad_input(path: str, body: bytes, front: Proxy, upstream_url: str) -> None:
    """Bad input gets the upstream's own answer, every time."""
    answers = [
        requests.post(
            url + path, data=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        for url in (upstream_url, front.url, front.url)
    ]
    assert len({answer.status_code for answer in answers}) == 1
    assert answers[0].status_code >= 400
    assert answers[1].content == answers[0].content
    assert all(answer.headers["X-Cache"] in ("BYPASS", "MISS") for answer in answers[1:])


@each(("n", "status"), [(0, 200), (-1, 200), ("2", 400), (True, 400), (2.0, 400)])
def test_odd_n_is_not_stored(n: Any, status: int, front: Proxy, upstream_url: str) -> None:
    """What SGLang makes of an odd n is relayed, and never kept."""
    body = generate(prompt())
    body["sampling_params"]["n"] = n
    direct = requests.post(f"{upstream_url}/generate", json=body, timeout=60)
    before = front.stats()["total_responses"]
    answer = requests.post(f"{front.url}/generate", json=body, timeout=60)
    assert answer.status_code == direct.status_code == status
    assert answer.headers["X-Cache"] == "BYPASS"
    assert front.stats()["total_responses"] == before


def test_repeated_key_is_forwarded(front: Proxy) -> None:
    """A body with a key twice means what upstream makes of it."""
    body = '{"text": "%s", "text": "%s", "sampling_params": {"max_new_tokens": 2}}'
    data = body % (prompt(), prompt())
    for _ in range(2):
        answer = requests.post(
            f"{front.url}/generate",
            data=data,
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        assert answer.status_code == 200
        assert cache_status(answer.headers) == "sglang-cached; fwd=bypass; detail=duplicate-key"


def events(answer: requests.Response) -> list[bytes]:
    """A streamed answer's events."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = answer.content.split(b"\n\n")
    assert found[-2:] == [b"data: [DONE]", b""]
    return found[:-1]


@each("path", ["/v1/completions", "/v1/chat/completions"])
@each("options", [{"include_usage": True}, {"continuous_usage_stats": True}])
def test_stream_usage(path: str, options: dict[str, bool], post: Post, upstream_url: str) -> None:
    """Usage comes where it is asked for, as upstream words it, and JSON has the same."""
    body = {**greedy(path, prompt()), "stream": True, "stream_options": options}
    direct = requests.post(upstream_url + path, json=body, timeout=60)
    first, again = post(path, body), post(path, body)
    assert (first.headers["X-Cache"], again.headers["X-Cache"]) == ("MISS", "HIT")
    assert again.content == first.content
    counts = [[json.loads(e[6:]).get("usage") for e in events(a)[:-1]] for a in (direct, first)]
    assert {str(usage and sorted(usage)) for usage in counts[0]} == {
        str(usage and sorted(usage)) for usage in counts[1]
    }
    assert counts[0][-1] == counts[1][-1]
    plain = {name: value for name, value in body.items() if "stream" not in name}
    told = [usage for usage in counts[1] if usage]
    if "include_usage" in options:
        assert post(path, plain).json()["usage"].items() >= told[-1].items()


@each("path", BODIES)
def test_json_of_a_stream(path: str, post: Post, upstream_url: str) -> None:
    """A greedy answer is the same from upstream, and from a stream of it that was stored: in all
    that two calls to upstream itself agree in."""
    options: dict[str, Any] = {"logprobs": 2}
    if path != "/v1/completions":
        options = {"return_logprob": True, "top_logprobs_num": 2}
    if "chat" in path:
        options = {"logprobs": True, "top_logprobs": 2}
    for _ in range(20):
        body = greedy(path, prompt(), **options)
        direct, second = (
            requests.post(upstream_url + path, json=body, timeout=60).json() for _ in "12"
        )
        stream = post(path, {**body, "stream": True})
        assert stream.headers["X-Cache"] == "MISS"
        # SGLang's chat streams lose the log-probabilities of a token without text.
        if "chat" not in path or stream.text.count('"bytes"') == 3 * 8:
            break
    answer = post(path, body)
    assert answer.headers["X-Cache"] == "HIT"
    stable, found = stably(direct, second, answer.json())
    assert found == stable
    assert "metadata" in stable or "meta_info" in stable


def _is_close(first: float, other: float) -> bool:
    """Sums of a server that does other things at the same time differ in their last digits."""
    return isclose(first, other, rel_tol=1e-3, abs_tol=1e-3)


def stably(first: Any, second: Any, other: Any) -> tuple[Any, Any]:
    """What two answers of upstream agree in, and what a third one has there; with the names of
    all members, in their order."""
    if isinstance(first, dict) and isinstance(second, dict) and isinstance(other, dict):
        names = [name for name in first if name in second and name != "created"]
        pairs = {name: stably(first[name], second[name], other.get(name)) for name in names}
        wanted, found = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
        if list(first) == list(second):
            wanted["the members"], found["the members"] = list(first), list(other)
        return wanted, found
    is_list = isinstance(first, list) and isinstance(second, list) and isinstance(other, list)
    if is_list and len(first) == len(second) == len(other):
        rows = [stably(*row) for row in zip(first, second, other, strict=True)]
        return [row[0] for row in rows], [row[1] for row in rows]
    if is_list and len(first) == len(second):
        return len(first), len(other)
    if isinstance(first, float) and isinstance(other, float) and _is_close(first, other):
        return first, first
    # What is another one each time, as a time, says nothing.
    return (first, other) if first == second else (None, None)


def test_other_routes_are_untouched(front: Proxy, upstream_url: str) -> None:
    """What is not cached passes through, heads and all."""
    ours, theirs = (
        requests.get(f"{url}/model_info", timeout=60) for url in (front.url, upstream_url)
    )
    assert ours.content == theirs.content
    drop = {"date"}
    assert {k: v for k, v in ours.headers.items() if k.lower() not in drop} == {
        k: v for k, v in theirs.headers.items() if k.lower() not in drop
    }


def test_openai_client(front: Proxy) -> None:
    """The official client works unchanged: chat, n, completions, lists, errors, models."""
    import openai  # takes more than a second, which not each worker need spend

    client = openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0)
    text = prompt()
    messages: Any = [{"role": "user", "content": text}]

    def ask(n: int) -> Any:
        return client.chat.completions.with_raw_response.create(
            model="any", messages=messages, max_tokens=8, n=n
        )

    kinds = [ask(n).headers["X-Cache"] for n in (1, 1, 3, 3)]
    assert kinds == ["MISS", "HIT", "PARTIAL", "HIT"]
    parsed = ask(3).parse()
    assert [choice.index for choice in parsed.choices] == [0, 1, 2]
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + parsed.usage.completion_tokens
    listed = client.completions.create(model="any", prompt=[text, prompt()], max_tokens=4)
    assert len(listed.choices) == 2
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="any", messages=messages, n=0)
    assert client.models.list().data


def test_counts(front: Proxy, post: Post) -> None:
    """/cache/stats moves as answers are given, with the names and types that people script on."""
    before = front.stats()
    text = prompt()
    for n in (1, 1, 2):
        post("/generate", generate(text, n))
    after = front.stats()
    moved = {name: after[name] - before[name] for name in ("hits", "misses", "partial_hits")}
    assert moved == {"hits": 1, "misses": 1, "partial_hits": 1}
    assert after["num_keys"] - before["num_keys"] == 1
    assert after["total_responses"] - before["total_responses"] == 2
    assert after["tokens_saved"] - before["tokens_saved"] == 16
    assert after["upstream_seconds_saved"] > before["upstream_seconds_saved"]
    looked_up = sum(after[name] for name in ("hits", "misses", "partial_hits", "collapsed"))
    assert after["hit_rate"] == pytest.approx(after["hits"] / looked_up)
    types = {"num_keys": int, "total_responses": int, "hits": int, "misses": int,
             "hit_rate": float, "cache_file": str, "pending_writes": int}  # fmt: skip
    assert {name: type(after[name]) for name in types} == types


NOISE = frozenset({"id", "created", "e2e_latency", "response_sent_to_client_ts", "cached_tokens",
                   "cached_tokens_details", "prompt_tokens_details"})  # fmt: skip
"""Members of an answer that say nothing of the call."""


def quiet(answer: Any) -> Any:
    """An answer without what differs from one call to the next."""
    if isinstance(answer, dict):
        return {name: quiet(value) for name, value in answer.items() if name not in NOISE}
    if isinstance(answer, float):
        return round(answer, 2)
    return [quiet(value) for value in answer] if isinstance(answer, list) else answer


def whole(path: str, answer: requests.Response) -> Any:
    """All that an answer says, however its stream was cut into events."""
    if "json" in answer.headers["content-type"]:
        return quiet(answer.json())
    told = [quiet(json.loads(event[6:])) for event in events(answer)[:-1]]
    if path == "/generate":
        return told[-1]
    choices = [event["choices"][0] for event in told if event["choices"]]
    text = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)
    return text, choices[-1]["finish_reason"], choices[-1]["matched_stop"], told[-1]["usage"]


def limited(path: str, text: str, limit: int, scores: bool) -> dict[str, Any]:
    """A greedy call."""
    if path == "/generate":
        params = {"temperature": 0, "max_new_tokens": limit}
        more = {"return_logprob": True, "top_logprobs_num": 1} if scores else {}
        return {"text": text, "sampling_params": params, **more}
    body = {"model": "m", "temperature": 0, "max_tokens": limit}
    if path == "/v1/completions":
        return {**body, "prompt": text, **({"logprobs": 1} if scores else {})}
    more = {"logprobs": True, "top_logprobs": 1} if scores else {}
    return {**body, "messages": [{"role": "user", "content": text}], **more}


@each("path", BODIES)
def test_greedy_reuse(path: str, post: Post, upstream_url: str) -> None:
    """Whatever was stored for a greedy prompt before, with whatever limit, a call gets what the
    server gives it alone. (SGLANG_PROMPTS says how many prompts are tried.)"""
    dice, kinds = random.Random(7), Counter[str]()
    for _ in range(int(os.environ.get("SGLANG_PROMPTS", "2"))):
        text = prompt(" ".join(dice.choices(WORDS, k=dice.randint(1, 9))))
        for limit in dice.sample(range(1, 65), 6):
            body = limited(path, text, limit, scores=dice.random() < 0.3)
            if dice.random() < 0.2:
                holder = body["sampling_params"] if path == "/generate" else body
                holder["stop"] = dice.choice("aeth")
            if dice.random() < 0.5:
                options = {"stream_options": {"include_usage": True}}
                body = {**body, "stream": True, **({} if path == "/generate" else options)}
            direct = requests.post(upstream_url + path, json=body, timeout=60)
            answer = post(path, body)
            kinds[cache_status(answer.headers).partition(";")[2]] += 1
            assert whole(path, answer) == whole(path, direct), (body, answer.headers)
    # In the words of a model that was not trained there is hardly a boundary that is known.
    assert path != "/generate" or any("hit" in kind for kind in kinds)
