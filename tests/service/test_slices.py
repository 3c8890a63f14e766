"""A large answer that is read a sample at a time comes to the same as one that is read whole."""

from __future__ import annotations

import json
from itertools import count
from math import inf
from typing import Any

import orjson

from sglang_cached_addon import dialects
from sglang_cached_addon.core.call import Split
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
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


DIALECTS = dialects.installed()


def both_ways(
    asked: str,
    body: bytes,
    server: Server = UNKNOWN,
    largest: float = inf,
    pause: slices.Pause = bool,
) -> tuple[Split | Reason, Split | Reason]:
    """What comes of an answer that is read whole, and of one that is read in slices."""
    dialect = DIALECTS["POST", asked.split(" ")[0]]
    call = dialect.read(ASKED[asked])
    numbers = count()
    sent = dialect.trim(call, [call.n] * len(call.items), lambda: f"rid{next(numbers)}", server)
    found: list[Split | Reason] = []
    for way in (
        lambda: dialect.split(call, sent, orjson.loads(body)),
        lambda: slices.split(dialect, call, sent, body, largest, pause),
    ):
        try:
            found.append(way())
        except Refused as e:
            found.append(e.reason)
        except ValueError:
            found.append(Reason.UNREADABLE)
    return found[0], found[1]


def answers(asked: str) -> dict[str, Any]:
    return LISTS if asked.startswith(GENERATE) else CHOICES


def test_as_if_read_whole() -> None:
    """A large answer that is read in slices comes to the same as one that is read whole, be it to
    nothing."""
    for asked in ASKED:
        for name, answer in answers(asked).items():
            for body in (orjson.dumps(answer), json.dumps(answer).encode()):
                whole, sliced = both_ways(asked, body)
                assert sliced == whole, (asked, name)


def test_damage() -> None:
    """A torn or changed answer comes to the same in slices and whole."""
    for asked in ASKED:
        good = orjson.dumps(answers(asked)["whole"])
        for place in range(0, len(good), 7):
            for body in (
                good[:place],
                good[:place] + b"}" + good[place + 1 :],
                good + good[place:],
            ):
                whole, sliced = both_ways(asked, body)
                assert sliced == whole, (asked, body)


def test_is_read_in_slices() -> None:
    """There is a pause behind each sample."""
    pauses: list[int] = []
    for asked in (GENERATE, CHAT):
        pauses.clear()
        body = orjson.dumps(answers(asked)["whole"])
        assert isinstance(both_ways(asked, body, pause=lambda: pauses.append(1))[1], Split)
        assert len(pauses) == 3, asked


def test_a_sample_that_is_too_large() -> None:
    """A sample that is too large to be read at once is not read, by a reason of its own."""
    for asked, answer in (
        (GENERATE, LISTS["whole"]),
        (f"{GENERATE} one", native(0)),
        (CHAT, CHOICES["whole"]),
    ):
        body = orjson.dumps(answer)
        whole, sliced = both_ways(asked, body, largest=5)
        assert isinstance(whole, Split), asked
        assert sliced is Reason.LARGE_SAMPLE, asked
        assert both_ways(asked, body, largest=body.count(b","))[1] == whole, asked


TELLING = {
    "ids": {"token_ids": [7, 8, 9], "prompt_token_ids": [5, 6, 7, 8]},
    "meta_info": {"meta_info": {"completion_tokens": 3, "output_token_logprobs": [[-1.0, 7]] * 3}},
    "logprobs of a completion": {"logprobs": {"tokens": ["a"] * 3, "top_logprobs": [{"a": -1.0}]}},
    "logprobs of a chat": {"logprobs": {"content": [{"token": "é", "top_logprobs": []}] * 3}},
    "versions": {"meta_info": {"weight_version": "2", "weight_versions": [{"version": "1"}] * 2}},
    "nothing": {},
}


def test_each_tells_its_tokens() -> None:
    """What counts tokens is held where nothing else tells their number."""
    for asked in (COMPLETIONS, CHAT):
        for engine in (SGLANG, VLLM, ""):
            for name, told in TELLING.items():
                answer = completion([choice(k, **told) for k in range(3)])
                whole, sliced = both_ways(asked, orjson.dumps(answer), Server(engine))
                assert isinstance(whole, Split), (asked, name)
                assert sliced == whole, (asked, name, engine)
