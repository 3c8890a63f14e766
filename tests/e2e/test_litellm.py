"""litellm, unchanged but for its base URL, against the simulator or a real server: what it asks a
second time asks the server nothing, and gets equal answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Proxy
from tests.e2e.programs import Calls, Json, all_hits, has_samples, has_vectors, model
from tests.e2e.test_sglang import prompt

pytestmark = pytest.mark.one_way

USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}


def samples(url: str, model: str) -> Calls:
    base: Json = {"api_base": f"{url}/v1"}
    openai: Json = {**base, "max_tokens": 8}
    anthropic: Json = {"api_base": url, "max_tokens": 8, "model": "anthropic/default"}
    chats = [{"messages": [{"role": "user", "content": prompt()}]} for _ in range(6)]
    response: Json = {"model": f"openai/{model}", "input": prompt(), "max_output_tokens": 16}
    return [
        ("completion", {**openai, **chats[0], "model": "openai/default", "n": 2}),
        ("completion", {**openai, **chats[1], "model": "hosted_vllm/default", **USAGE}),
        ("acompletion", {**openai, **chats[2], "model": "openai/default"}),
        ("acompletion", {**openai, **chats[3], "model": "openai/default", **USAGE}),
        (
            "text_completion",
            {**openai, "model": "text-completion-openai/default", "prompt": prompt()},
        ),
        ("responses", {**base, **response}),
        ("aresponses", {**base, **response, "stream": True}),
        ("completion", {**anthropic, **chats[4]}),
        ("acompletion", {**anthropic, **chats[4], "max_tokens": 9, "stream": True}),
        ("anthropic.messages.acreate", {**anthropic, **chats[5]}),
    ]


def vectors(url: str) -> Calls:
    openai: Json = {"api_base": f"{url}/v1", "model": "openai/default"}
    return [
        ("embedding", {**openai, "input": [prompt(), prompt()]}),
        ("aembedding", {**openai, "input": [prompt()], "encoding_format": "float"}),
        ("embedding", {**openai, "input": [prompt()], "encoding_format": "base64"}),
    ]


def test_twice(litellm: Callable[[Calls], list[Any]], front: Proxy, upstream_url: str) -> None:
    """All its functions get from the cache what they got from the server."""
    calls = samples(front.url, model(upstream_url)) if has_samples(upstream_url) else []
    calls += vectors(front.url) if has_vectors(upstream_url) else []
    said = litellm(calls)
    with all_hits(front, len(calls)):
        again = litellm(calls)
    for call, one, two in zip(calls, said, again, strict=True):
        assert _without_own(one) == _without_own(two), call


def _without_own(answer: Any) -> Any:
    """What litellm has not made up: a time, and an id where the API has another kind."""
    if isinstance(answer, list):
        return [_without_own(each) for each in answer]
    is_own = str(answer.get("id")).startswith("chatcmpl-")
    own = {"created", "id"} if is_own else {"created"}
    return {name: value for name, value in answer.items() if name not in own}
