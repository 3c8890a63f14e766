"""Streaming clients work unchanged through the proxy, for new, repeated and mixed calls.

Against the simulator, or with SGLANG_URL against a real server. Samples are random: an answer is
compared with what was heard before, never with a constant.
"""

from __future__ import annotations

import itertools
from typing import Any

from tests.conftest import Proxy
from tests.e2e.calls import BODIES, CHAT, COMPLETIONS, GENERATE, PARAMS, asking
from tests.e2e.clients import (
    Client,
    Json,
    bench,
    curl,
    one_batch,
    openai_async,
    openai_sync,
    runtime_call,
    runtime_chunks,
    runtime_generate,
    runtime_stream,
    whole,
)
from tests.e2e.test_sglang import prompt
from tests.tables import each

ALL = [*BODIES]
V1 = [COMPLETIONS, CHAT]

USAGE: Json = {"stream_options": {"include_usage": True}}
WEATHER = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOLS: Json = {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"}
LOGPROBS: dict[str, Json] = {
    GENERATE: {"return_logprob": True, "top_logprobs_num": 2},
    COMPLETIONS: {"logprobs": 2},
    # Chat streams of SGLang lose the logprobs of tokens that end inside a character, and such a
    # stream is not stored: ASCII only.
    CHAT: {"logprobs": True, "top_logprobs": 2, "regex": "[a-z ]{200}"},
}
ASKS: dict[str, Json] = {
    "one": {},
    "n2": {"n": 2},
    "usage": USAGE,
    "n2-usage": {"n": 2, **USAGE},
    "tools": TOOLS,
    "tools-n2": {"n": 2, **TOOLS},
    "thinking": {"chat_template_kwargs": {"enable_thinking": True}},
}
# Leaves bodies as they are.
PLAIN: dict[str, Client] = {GENERATE: curl, COMPLETIONS: openai_sync, CHAT: openai_sync}


def asked(path: str, ask: str) -> Json:
    """A new body; "logprobs" goes by a name of its own on each route."""
    return asking(path, prompt(), **(LOGPROBS[path] if ask == "logprobs" else ASKS[ask]))


def with_usage(path: str, body: Json) -> Json:
    return body if path == GENERATE else {**body, **USAGE}


TABLE: list[tuple[Client, list[str], str]] = [
    (openai_sync, V1, "one n2 usage n2-usage logprobs"),
    (openai_async, V1, "n2-usage logprobs"),
    (openai_sync, [CHAT], "tools tools-n2"),
    (openai_async, [CHAT], "tools"),
    (runtime_stream, [GENERATE], "one logprobs"),
    (runtime_chunks, [GENERATE], "one logprobs"),
    (bench, ALL, "one logprobs"),
    (bench, [CHAT], "usage thinking"),
    (curl, ALL, "one n2 logprobs"),
    (curl, V1, "usage n2-usage"),
    (curl, [CHAT], "tools thinking"),
]


CASES = [
    (client, path, ask) for client, paths, asks in TABLE for path in paths for ask in asks.split()
]


@each(("client", "path", "ask"), CASES)
def test_repeat_hits(client: Client, path: str, ask: str, front: Proxy, upstream_url: str) -> None:
    """The first call is as good as without the proxy; the repeat is the same event by event."""
    body = asked(path, ask)
    direct, first, again = (client(url, path, body) for url in (upstream_url, front.url, front.url))
    for heard in (direct, first):
        assert len(heard.choices) == (2 if "n2" in ask else 1)
        assert (heard.usage is not None) == ("usage" in ask)
        assert all(bool(choice.logprobs) == (ask == "logprobs") for choice in heard.choices)
        assert all(choice.calls or choice.deltas > 1 for choice in heard.choices)
    if direct.usage and first.usage:
        assert first.usage["prompt_tokens"] == direct.usage["prompt_tokens"]
    assert [direct.cache, first.cache, again.cache] == [None, "MISS", "HIT"]
    assert (again.choices, again.usage) == (first.choices, first.usage)
    assert again.deltas == first.deltas
    if len(again.choices) == 1:  # else they may be woven in another way
        assert again.events == first.events


MIXED = [
    *((path, ask) for path in ALL for ask in ("one", "n2", "logprobs")),
    *((CHAT, ask) for ask in ("tools", "tools-n2", "thinking")),
]


@each(("path", "ask"), MIXED)
def test_json_after_stream(path: str, ask: str, front: Proxy, upstream_url: str) -> None:
    """What was recorded from a stream answers a call without one, token counts included."""
    body, stream = asked(path, ask), PLAIN[path]
    first = stream(front.url, path, body)
    second = whole(front.url, path, body)
    again = stream(front.url, path, with_usage(path, body))
    assert [heard.cache for heard in (first, second, again)] == ["MISS", "HIT", "HIT"]
    assert first.choices == second.choices == again.choices
    assert again.deltas == first.deltas
    assert first.usage is None
    assert second.usage == again.usage
    if second.usage:
        direct = whole(upstream_url, path, body).usage
        assert direct
        assert second.usage.keys() == direct.keys()
        assert second.usage["prompt_tokens"] == direct["prompt_tokens"]
        assert second.usage["completion_tokens"] > 0


@each(("path", "ask"), MIXED)
def test_stream_after_json(path: str, ask: str, front: Proxy) -> None:
    """What was recorded without a stream is streamed: one delta a choice."""
    body, stream = asked(path, ask), PLAIN[path]
    first = whole(front.url, path, body)
    second = stream(front.url, path, with_usage(path, body))
    third = stream(front.url, path, body)
    assert [heard.cache for heard in (first, second, third)] == ["MISS", "HIT", "HIT"]
    assert first.choices == second.choices == third.choices
    assert first.deltas == second.deltas == third.deltas
    assert (second.usage, third.usage) == (first.usage, None)


@each("path", V1)
@each("first", [False, True])
def test_usage_is_told_when_asked(path: str, first: bool, front: Proxy) -> None:
    """However it was recorded, a stream ends with the token counts if the call says so."""
    body = asked(path, "n2")
    turns = [first, not first, first]
    heard = [PLAIN[path](front.url, path, {**body, **(USAGE if t else {})}) for t in turns]
    assert [one.cache for one in heard] == ["MISS", "HIT", "HIT"]
    assert [one.usage is not None for one in heard] == turns
    counts = [one.usage for one in heard if one.usage]
    assert all(count == counts[0] for count in counts)


TURNS = {
    "json": ["json 1 MISS", "json 3 PARTIAL", "json 5 PARTIAL", "json 5 HIT", "json 2 HIT",
             "json 4 HIT"],
    "streams": ["stream 1 MISS", "stream 2 PARTIAL", "stream 2 HIT", "stream 4 PARTIAL",
                "stream 1 HIT", "stream 3 HIT"],
    "mixed": ["json 1 MISS", "stream 2 PARTIAL", "json 3 PARTIAL", "stream 4 PARTIAL",
              "json 4 HIT", "stream 4 HIT"],
}  # fmt: skip


@each("path", ALL)
@each("turns", TURNS)
def test_more_samples(turns: str, path: str, front: Proxy) -> None:
    """A pool grows and keeps its order, streamed or not; token counts are the sums."""
    text = prompt()
    seen: list[Any] = []
    counts: set[int] = set()
    for turn in TURNS[turns]:
        how, number, kind = turn.split()
        n = int(number)
        body = asking(path, text, n)
        if how == "stream":
            heard = PLAIN[path](front.url, path, with_usage(path, body))
        else:
            heard = whole(front.url, path, body)
        assert heard.cache == kind
        assert len(heard.choices) == n
        assert heard.choices[: len(seen)] == seen[:n]
        seen = max(seen, heard.choices, key=len)
        if usage := heard.usage:
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert usage["completion_tokens"] >= n
            counts.add(usage["prompt_tokens"])
        else:
            assert path == GENERATE
    assert len(counts) == (path != GENERATE)


_ids = itertools.count(200)


def token_ids(count: int) -> list[list[int]]:
    """Prompts that no other test has used, and that share no beginning."""
    return [[next(_ids), 20, 30] for _ in range(count)]


@each("path", [GENERATE, COMPLETIONS])
def test_batches(path: str, front: Proxy, upstream_url: str) -> None:
    """Of a list in a stream only what is new is generated; one prompt in a list is a list too."""
    a, b, c = token_ids(3)

    def ask(url: str, prompts: list[list[int]]) -> Any:
        if path == COMPLETIONS:
            return openai_sync(url, path, asking(path, prompts, **USAGE))
        return one_batch(url, path, {"input_ids": prompts, "sampling_params": PARAMS})

    direct = ask(upstream_url, [a, b])
    assert (len(direct.choices), direct.cache) == (2, None)
    one, two = ask(front.url, [b]), ask(front.url, [a, b])
    assert (one.cache, two.cache) == ("MISS", "PARTIAL")
    assert two.choices[1] == one.choices[0]
    hit = ask(front.url, [b, a])
    assert hit.cache == "HIT"
    assert hit.choices == two.choices[::-1]
    assert (hit.usage is None) == (path == GENERATE)
    assert hit.usage == two.usage
    three = ask(front.url, [c, a, b])
    assert three.cache == "PARTIAL"
    assert three.choices[1:] == two.choices
    again = ask(front.url, [b])
    assert (again.cache, again.events) == ("HIT", one.events)


ORDERS = {
    "stream-first": [runtime_stream, runtime_generate],
    "stream-last": [runtime_generate, runtime_stream],
}


@each("clients", ORDERS.values())
def test_runtime_endpoint(clients: list[Client], front: Proxy, upstream_url: str) -> None:
    """As sglang's language starts: model, prefix, then the same call streamed and not."""
    assert runtime_call(front.url, "/get_model_info") == runtime_call(
        upstream_url, "/get_model_info"
    )
    body = asked(GENERATE, "one")
    warm = {"text": body["text"], "sampling_params": {"max_new_tokens": 0}}
    (first, kind), (again, then) = (runtime_call(front.url, GENERATE, warm) for _ in range(2))
    assert (kind, then) == ("MISS", "HIT")
    assert first == again
    assert (first["text"], first["meta_info"]["completion_tokens"]) == ("", 0)
    heard = [client(front.url, GENERATE, body) for client in clients]
    assert [one.cache for one in heard] == ["MISS", "HIT"]
    assert heard[0].choices == heard[1].choices
