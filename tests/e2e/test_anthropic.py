"""Anthropic's client, unchanged but for its base URL, against the simulator or a real server: what
it asks a second time asks the server nothing, and gets equal answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from tests.conftest import Proxy
from tests.e2e.programs import IS_REAL, Ask, Calls, twice
from tests.e2e.test_sglang import prompt
from tests.tables import each

MODEL = "default"
ANSWERS = 60

Json = dict[str, Any]


@pytest.fixture(scope="module")
def client(front: Proxy) -> Iterator[Any]:
    import anthropic

    with anthropic.Anthropic(
        base_url=front.url,
        api_key="none",
        max_retries=0,
        timeout=ANSWERS,
        http_client=anthropic.DefaultHttpxClient(verify=False),
    ) as found:
        yield found


def user(text: str, **more: Any) -> Json:
    return {"role": "user", "content": [{"type": "text", "text": text, **more}]}


def tool(name: str, **properties: Json) -> Json:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"name": name, "description": name, "input_schema": schema, "strict": True}


WEATHER = tool("weather", city={"type": "string", "enum": ["Oslo", "Rome"]})
CACHED = {"cache_control": {"type": "ephemeral"}}


def create(client: Any, **body: Any) -> Any:
    return client.messages.create(model=MODEL, **{"max_tokens": 16, **body})


def stream(client: Any, **body: Any) -> Any:
    with client.messages.stream(model=MODEL, **{"max_tokens": 16, **body}) as events:
        for _ in events:
            pass
        return events.get_final_message()


def events(client: Any, **body: Any) -> Any:
    return [event.model_dump() for event in create(client, stream=True, **body)]


def beta(client: Any, **body: Any) -> Any:
    return client.beta.messages.create(
        model=MODEL, betas=["interleaved-thinking-2025-05-14"], **{"max_tokens": 16, **body}
    )


def counted(client: Any, **body: Any) -> Any:
    return client.messages.count_tokens(model=MODEL, **body)


# A tiny model may not come to the end of a tool's input, and a stream that is cut off in it is not
# stored.
TOOLS: Json = {"tools": [WEATHER], "tool_choice": {"type": "auto" if IS_REAL else "any"}}
FORMS: dict[str, Json] = {
    "plain": {},
    "a system": {"system": "Be brief.", "temperature": 0.5, "stop_sequences": ["###"]},
    "blocks": {"system": [{"type": "text", "text": "Be brief.", **CACHED}]},
    "tools": TOOLS,
    **({} if IS_REAL else {"thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}}}),
}


@each("form", FORMS.values(), ids=FORMS)
@each("asking", [create, stream, events, beta])
def test_twice(asking: Callable[..., Any], form: Json, client: Any, front: Proxy) -> None:
    """The second of two equal calls is answered from the cache, and its answer is equal."""
    messages = [user(prompt(), **CACHED)]
    first = asking(client, messages=messages, **form)
    stats = front.stats()
    second = asking(client, messages=messages, **form)
    assert second == first
    assert front.stats()["misses"] == stats["misses"]
    assert front.stats()["hits"] == stats["hits"] + 1


@each("form", FORMS.values(), ids=FORMS)
def test_one_sample(form: Json, client: Any, front: Proxy) -> None:
    """What the client makes of a stream is what it makes of JSON, whichever came first."""
    for first, second in ((create, stream), (stream, create)):
        messages = [user(prompt())]
        answers = [asking(client, messages=messages, **form) for asking in (first, second)]
        whole, again = (answer.model_dump(exclude={"parsed_output"}) for answer in answers)
        assert _known(whole) == _known(again)
        if form.get("tools") and not IS_REAL:
            assert whole["stop_reason"] == "tool_use"


def _known(value: Any) -> Any:
    """What was said, without what a client adds of its own."""
    if isinstance(value, dict):
        return {n: _known(v) for n, v in value.items() if v is not None and n[0] != "_"}
    return [_known(each) for each in value] if isinstance(value, list) else value


def test_counts(client: Any, front: Proxy, upstream_url: str) -> None:
    """Counts of tokens are the server's, and asked for once."""
    body: Json = {"messages": [user(prompt())], "tools": [WEATHER], "system": "Be brief."}
    found = [counted(client, **body).input_tokens for _ in range(2)]
    path = f"{upstream_url}/v1/messages/count_tokens"
    direct = requests.post(path, json={"model": MODEL, **body}, timeout=ANSWERS).json()
    assert found == [direct["input_tokens"]] * 2


def test_node(node: Ask, front: Proxy) -> None:
    """So it is for Anthropic's client for Node, which Claude Code is made with."""
    asked: Json = {"model": MODEL, "messages": [user(prompt(), **CACHED)]}
    betas = {"max_tokens": 16, "betas": ["interleaved-thinking-2025-05-14"]}
    calls: Calls = [
        ("anthropic.messages.create", {**asked, "max_tokens": 16}),
        ("anthropic.messages.create", {**asked, **TOOLS, "max_tokens": 17, "stream": True}),
        ("anthropic.beta.messages.create", {**asked, **betas}),
        ("anthropic.beta.messages.create", {**asked, **betas, "temperature": 0.5, "stream": True}),
        ("anthropic.messages.countTokens", asked),
    ]
    twice(node, front, calls)
