"""OpenAI's `/v1/completions`."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects.completions import DIALECT
from tests.dialects.bodies import item, minter, refusal
from tests.tables import each


def one(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": "a", **fields}


def batch(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": ["a", "b", "c"], **fields}


def answer(texts: str, prompt_tokens: int = 1) -> dict[str, Any]:
    """An answer with a choice of two tokens for each letter."""
    return {
        "id": "up",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": k, "text": text, "logprobs": {"tokens": [text] * 2}, "finish_reason": "stop"}
            for k, text in enumerate(texts)
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "total_tokens": prompt_tokens + 2 * len(texts),
            "completion_tokens": 2 * len(texts),
        },
        "metadata": {"weight_version": "default"},
    }


@each(
    ("body", "n", "size", "batched", "rids"),
    [
        (one(), 1, 1, False, ()),
        (one(prompt=""), 1, 1, False, ()),
        (one(n=3), 3, 1, False, ()),
        (one(prompt=[1, 2, 3]), 1, 1, False, ()),
        (one(prompt=["a"]), 1, 1, True, ()),
        (one(prompt=[[1, 2], [3]], n=2), 2, 2, True, ()),
        (one(rid="r"), 1, 1, False, ("r",)),
        (one(rid="r", n=2), 2, 1, False, ()),
        (batch(rid="r"), 1, 3, True, ("r_0", "r_1", "r_2")),
        (batch(rid=["x", "y", "z"]), 1, 3, True, ("x", "y", "z")),
    ],
)
def test_read(
    body: dict[str, Any], n: int, size: int, batched: bool, rids: tuple[str, ...]
) -> None:
    """A body is read as the client means it."""
    call = DIALECT.read(body)
    assert (call.n, len(call.items), call.batched, call.rids) == (n, size, batched, rids)
    assert call.body == body


def test_prompts_of_a_batch_are_those_of_single_calls() -> None:
    """A prompt of a batch has the key that it has alone."""
    lists = {"lora_path": ["x", "y", "z"], "extra_key": ["1", "2", "3"], "cache_salt": list("789")}
    call = DIALECT.read(batch(**lists, stop=["s", "t"], rid="r"))
    assert call.items == tuple(
        item(DIALECT, one(prompt="abc"[i], stop=["s", "t"], **{k: v[i] for k, v in lists.items()}))
        for i in range(3)
    )


@each(
    ("body", "reason"),
    [
        *((one(prompt=prompt), Reason.MALFORMED) for prompt in (
            None, 1, {}, [], [[]], [[1], []], ["a", 1], [1, "a"], ["a", [1]], [True], [1, True],
            [1.0], [[1], [1.0]], [["a"]], [None],
        )),
        ({"model": "m"}, Reason.MALFORMED),
        (one(lora_path=["x"]), Reason.MALFORMED),
        (batch(lora_path=["x"]), Reason.MALFORMED),
        (batch(lora_path=list("wxyz")), Reason.MALFORMED),
        (batch(not_yet_invented=[1, 2, 3]), Reason.INSEPARABLE),
        (one(n=2, return_routed_experts=True), Reason.INSEPARABLE),
        (one(best_of=2), Reason.BEST_OF),
        (one(n=2, use_beam_search=True), Reason.BEAM),
        (batch(return_routed_experts=True), Reason.INSEPARABLE),
    ],
)  # fmt: skip
def test_refusals(body: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(DIALECT, body) is reason


def test_prompt_tokens_by_length() -> None:
    """Each prompt of a batch has its own number of tokens."""
    call = DIALECT.read(one(prompt=["aaaaaaaaa", "a"]))
    sent = DIALECT.trim(call, (1, 1), minter())
    result = DIALECT.split(call, sent, answer("xy", prompt_tokens=10))
    usages = [json.loads(g.answer)["usage"] for g in result.generations]
    assert [usage["prompt_tokens"] for usage in usages] == [9, 1]
    assert [usage["total_tokens"] for usage in usages] == [11, 3]


def test_as_many_tokens_as_there_may_be() -> None:
    """Where all choices have as many tokens as they may, each has as many: 16 if nothing is
    said."""
    for fields, limit in (({}, 16), ({"max_tokens": 5}, 5)):
        call = DIALECT.read(one(n=2, **fields))
        for tokens, reason in ((2 * limit, None), (2 * limit - 1, Reason.SHARED_USAGE)):
            value = answer("xy")
            value["usage"]["completion_tokens"] = tokens
            for choice in value["choices"]:
                choice["logprobs"] = None
            split = DIALECT.split(call, DIALECT.trim(call, (2,), minter()), value)
            assert split.refusal is reason
