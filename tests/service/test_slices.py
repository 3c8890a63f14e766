"""A large answer that is read a sample at a time comes to the same as one that is read whole."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import orjson
import pytest

from sglang_cached_addon import dialects
from sglang_cached_addon.core.call import Fill, Split
from sglang_cached_addon.core.identity import SGLANG, UNKNOWN, VLLM, Server
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.service import slices

TRICKY = 'a "},{" b }]} {{ \\ é \u2028 "choices":[ ],{"x":1}'
LOGPROBS = {"tokens": ["}", "],"], "top_logprobs": [{"},{": -0.5}, {"]": -1.0}]}


def native(k: int, **more: Any) -> dict[str, Any]:
    meta = {"id": "x", "completion_tokens": k + 1, "finish_reason": {"type": "stop"}, **more}
    return {"text": f"{TRICKY}{k}", "meta_info": {**meta, "weight_version": "default"}}


def choice(k: int, **more: Any) -> dict[str, Any]:
    said = {"text": f"{TRICKY}{k}", "message": {"role": "assistant", "content": TRICKY * (k + 1)}}
    return {"index": k, **said, "logprobs": LOGPROBS, "finish_reason": "stop", **more}


def completion(choices: list[Any], **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}
    return {"id": "y", "model": "m", "choices": choices, "usage": usage, "metadata": None, **more}


GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
ASKED: dict[str, dict[str, Any]] = {
    GENERATE: {"text": "q", "sampling_params": {"n": 3}},
    f"{GENERATE} list": {"text": ["q", "r", "s"]},
    f"{GENERATE} one": {"text": "q"},
    COMPLETIONS: {"model": "m", "prompt": "q", "n": 3},
    f"{COMPLETIONS} list": {"model": "m", "prompt": ["q", "r", "s"]},
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "q"}], "n": 3},
}

LISTS: dict[str, Any] = {
    "whole": [native(k) for k in range(3)],
    "one": native(0),
    "one in a list": [native(0)],
    "too few": [native(0), native(1)],
    "too many": [native(k) for k in range(4)],
    "none": [],
    "not objects": [1, 2, 3],
    "nested": [[native(0)], native(1), native(2)],
    "unfinished": [native(0), native(1, finish_reason=None), native(2)],
    "aborted": [native(0), native(1, finish_reason={"type": "abort"}), native(2)],
    "an error": [native(0), {"error": {"message": "x"}}, native(2)],
    "no object": {"error": {"message": "x"}},
    "other weights": [native(0), native(1, weight_version="w"), native(2)],
    "text": TRICKY,
}
CHOICES: dict[str, Any] = {
    "whole": completion([choice(k) for k in range(3)]),
    "another order": completion([choice(2), choice(0), choice(1)]),
    "too few": completion([choice(0)]),
    "twice": completion([choice(0), choice(0), choice(1)]),
    "none": completion([]),
    "not objects": completion([1, 2, 3]),
    "no logprobs": completion([choice(k, logprobs=None) for k in range(3)]),
    "aborted": completion([choice(k, finish_reason="abort") for k in range(3)]),
    "an error": completion([choice(k) for k in range(3)], error={"message": "x"}),
    "choices elsewhere": {"extra": {"choices": [{"a": 1}]}, **completion([choice(0)])},
    "choices last": {"id": "y", "choices": [choice(k) for k in range(3)]},
    "no choices": {"error": {"message": "x"}},
    "a list": [choice(k) for k in range(3)],
}
CASES = [
    (asked, name, answer)
    for asked in ASKED
    for name, answer in (LISTS if asked.startswith(GENERATE) else CHOICES).items()
]


def both_ways(
    asked: str, body: bytes, server: Server = UNKNOWN, **more: Any
) -> tuple[Split | Reason, Split | Reason]:
    """What comes of an answer that is read whole, and of one that is read in slices."""
    dialect = dialects.installed()["POST", asked.split(" ")[0]]
    call = dialect.read(ASKED[asked])
    numbers = count()
    fill = dialect.trim(call, [call.n] * len(call.items), lambda: f"rid{next(numbers)}", server)
    found: list[Split | Reason] = []
    for way in (
        lambda: dialect.split(call, fill, orjson.loads(body)),
        lambda: slices.split(dialect, call, fill, body, **more),
    ):
        try:
            found.append(way())
        except Refused as e:
            found.append(e.reason)
        except ValueError:
            found.append(Reason.UNREADABLE)
    return found[0], found[1]


@pytest.mark.parametrize("spaces", [None, (", ", ": ")], ids=["compact", "spaced"])
@pytest.mark.parametrize(("asked", "name", "answer"), CASES)
def test_as_if_read_whole(
    asked: str, name: str, answer: Any, spaces: tuple[str, str] | None
) -> None:
    """A large answer would be stored as another one, or one that is not to be stored would be."""
    compact = orjson.dumps(answer)
    body = json.dumps(answer, separators=spaces).encode() if spaces else compact
    whole, sliced = both_ways(asked, body)
    assert sliced == whole


@pytest.mark.parametrize("asked", ASKED)
def test_damage(asked: str) -> None:
    """A torn or changed answer would be taken for another."""
    good = orjson.dumps((LISTS if asked.startswith(GENERATE) else CHOICES)["whole"])
    for place in range(0, len(good), 7):
        for body in (good[:place], good[:place] + b"}" + good[place + 1 :], good + good[place:]):
            whole, sliced = both_ways(asked, body)
            assert sliced == whole, body


def test_is_read_in_slices() -> None:
    """All of it would be in memory at once, or nobody else have a turn."""
    turns = []
    body = orjson.dumps(LISTS["whole"])
    _, sliced = both_ways(GENERATE, body, pause=lambda: turns.append(1))
    assert isinstance(sliced, Split)
    assert len(turns) == 3
    both_ways(CHAT, orjson.dumps(CHOICES["whole"]), pause=lambda: turns.append(1))
    assert len(turns) == 6


@pytest.mark.parametrize("asked", [GENERATE, f"{GENERATE} one", CHAT])
def test_a_sample_that_is_too_large(asked: str) -> None:
    """To read it would hold up everybody."""
    answers = {GENERATE: LISTS["whole"], f"{GENERATE} one": native(0), CHAT: CHOICES["whole"]}
    body = orjson.dumps(answers[asked])
    whole, sliced = both_ways(asked, body, largest=5)
    assert isinstance(whole, Split)
    assert sliced is Reason.LARGE_SAMPLE
    assert both_ways(asked, body, largest=body.count(b","))[1] == whole


TELLING = {
    "ids": {"token_ids": [7, 8, 9], "prompt_token_ids": [5, 6, 7, 8]},
    "meta_info": {"meta_info": {"completion_tokens": 3, "output_token_logprobs": [[-1.0, 7]] * 3}},
    "logprobs of a completion": {"logprobs": {"tokens": ["a"] * 3, "top_logprobs": [{"a": -1.0}]}},
    "logprobs of a chat": {"logprobs": {"content": [{"token": "é", "top_logprobs": []}] * 3}},
    "versions": {"meta_info": {"weight_version": "2", "weight_versions": [{"version": "1"}] * 2}},
    "nothing": {},
}


@pytest.mark.parametrize("told", TELLING)
@pytest.mark.parametrize("asked", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("engine", [SGLANG, VLLM, ""])
def test_each_tells_its_tokens(asked: str, told: str, engine: str) -> None:
    """What counts tokens would be lost where it is not held, and the answer not stored."""
    answer = completion([choice(k, **TELLING[told]) for k in range(3)])
    body = orjson.dumps(answer)
    whole, sliced = both_ways(asked, body, Server(engine))
    assert isinstance(whole, Split)
    assert sliced == whole
    light = slices.read(body, ("token_ids",))
    fill = Fill({}, (0,), 3, server=Server(engine), added=("token_ids",))
    assert slices.write(fill, light) == slices.write(fill, answer)
