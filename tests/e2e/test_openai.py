"""OpenAI's clients, in Python and in Node, unchanged but for their base URL, against the simulator
or a real server: what they ask a second time asks the server nothing, and gets equal answers."""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import Any

import pytest

from tests.conftest import Proxy
from tests.e2e.programs import (
    IS_REAL,
    Ask,
    Calls,
    Json,
    all_hits,
    has_samples,
    has_vectors,
    model,
    twice,
)
from tests.e2e.test_sglang import prompt

MODEL = "default"


def python(url: str, calls: Calls) -> list[Any]:
    import openai

    usual: Json = {"api_key": "none", "max_retries": 0, "timeout": 60}
    with openai.OpenAI(
        base_url=f"{url}/v1", http_client=openai.DefaultHttpxClient(verify=False), **usual
    ) as client:
        return [_asked(client, name, body) for name, body in calls]


def _asked(client: Any, name: str, body: Json) -> Any:
    *path, method = name.split(".")[1:]
    api = reduce(getattr, path, client)
    raw = getattr(api.with_raw_response, method)(**body)
    answer = raw.parse()
    said = [_plain(event) for event in answer] if body.get("stream") else _plain(answer)
    return [raw.headers.get("X-Cache"), said]


def _plain(model: Any) -> Json:
    """What the server said; the client has no type for vectors in base64."""
    found: Json = model.model_dump(mode="json", exclude_unset=True, warnings=False)
    return found


USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}


def generating() -> Calls:
    """Calls for samples that nobody has asked for."""
    chat: Json = {"messages": [{"role": "user", "content": prompt()}]}
    text: Json = {"prompt": prompt()}
    usual: Json = {"model": MODEL, "max_tokens": 8}
    return [
        ("openai.chat.completions.create", {**usual, **chat, "n": 2, "logprobs": True}),
        ("openai.chat.completions.create", {**usual, **chat, **USAGE}),
        ("openai.completions.create", {**usual, **text, "n": 2}),
        ("openai.completions.create", {**usual, **text, **USAGE, "logprobs": 1}),
    ]


CITY: Json = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Json = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
# A tiny model may not come to the end of what a tool is given, and a stream that is cut off in it
# is not stored.
TOOLS: Json = {"tools": [WEATHER], "tool_choice": "none" if IS_REAL else "required"}


def conversing(model: str) -> Calls:
    """Calls for answers by items, as text, and with tools; the model has to be the server's own."""
    usual: Json = {"model": model, "max_output_tokens": 16}
    items = [{"role": "user", "content": [{"type": "input_text", "text": prompt()}]}]
    named: Json = {"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u", "store": False}
    bodies: list[Json] = [
        {"input": prompt()},
        {"input": items, "temperature": 0.5, **named},
        {"input": prompt(), "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}},
        {"input": prompt(), **TOOLS, "max_output_tokens": 16 if IS_REAL else 66},
    ]
    bodies += [{**body, "input": prompt(), "stream": True} for body in bodies]
    return [("openai.responses.create", {**usual, **body}) for body in bodies]


def embedding() -> Calls:
    """Calls for vectors, in all forms; a client that is told none asks for base64, and makes
    numbers of it."""
    forms: list[Json] = [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
    lists = [[prompt(), prompt()] for _ in forms]
    return [
        ("openai.embeddings.create", {"model": MODEL, "input": texts, **form})
        for form, texts in zip(forms, lists, strict=True)
    ]


@pytest.fixture
def calls(upstream_url: str) -> Calls:
    own = model(upstream_url)
    found = [*generating(), *conversing(own)] if has_samples(upstream_url) else []
    return found + (embedding() if has_vectors(upstream_url) else [])


def test_python(calls: Calls, front: Proxy) -> None:
    """What the client asks a second time is answered from the cache, equal in all that it shows."""
    twice(python, front, calls)


def test_node(node: Ask, calls: Calls, front: Proxy) -> None:
    """So it is for Node's client; and what one has asked, the other gets."""
    said = twice(node, front, calls)
    with all_hits(front, len(calls)):
        assert python(front.url, calls) == said


def test_one_answer(upstream_url: str, front: Proxy) -> None:
    """What the client makes of a stream of items is what JSON is, whichever came first."""
    if not has_samples(upstream_url):
        pytest.skip("the server does not generate")
    whole = [call for call in conversing(model(upstream_url)) if "stream" not in call[1]]
    for order, (name, asked) in product((1, -1), whole):
        body = {**asked, "input": prompt()}
        calls = [(name, body), (name, {**body, "stream": True})]
        first, second = python(front.url, calls[::order])
        assert (first[0], second[0]) == ("MISS", "HIT")
        answer, events = (said for _, said in (first, second)[::order])
        assert events[-1]["response"] == answer
        done = [each["item"] for each in events if each["type"] == "response.output_item.done"]
        assert done == answer["output"]
