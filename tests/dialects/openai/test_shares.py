"""Each choice's own share of a usage."""

from __future__ import annotations

import copy
from typing import Any

from sglang_cached_addon.dialects.openai import choices, shares
from tests.tables import each


@each("total", [0, 1, 2, 3, 7, 10, 97, 1000, 10**12 + 1])
@each(
    "weights",
    [[1], [0], [1, 1], [0, 0], [0, 1], [1, 2, 3], [5, 0, 0, 1], [1] * 7, [10**9, 1],
     list(range(50))],
)  # fmt: skip
def test_apportion(total: int, weights: list[int]) -> None:
    """Parts sum up to the whole, and each is near to its weight."""
    parts = shares.apportion(total, weights)
    assert sum(parts) == total
    assert len(parts) == len(weights)
    whole = sum(weights) or len(weights)
    for part, weight in zip(parts, weights if sum(weights) else [1] * len(weights), strict=True):
        assert total * weight // whole <= part <= total * weight // whole + 1


def test_apportion_is_by_weight() -> None:
    """A larger weight has a larger part."""
    assert shares.apportion(10, [1, 0, 4]) == [2, 0, 8]
    assert shares.apportion(4, [0, 0, 0]) == [2, 1, 1]
    assert shares.apportion(5, []) == []


USAGES: list[dict[str, Any]] = [
    {"prompt_tokens": 20, "total_tokens": 36, "completion_tokens": 16},
    {"prompt_tokens": 7, "total_tokens": 20, "completion_tokens": 13,
     "prompt_tokens_details": None, "reasoning_tokens": 0, "completion_tokens_details": None},
    {"prompt_tokens": 11, "total_tokens": 42, "completion_tokens": 31,
     "prompt_tokens_details": {"cached_tokens": 5, "image_tokens": 0}, "reasoning_tokens": 9,
     "completion_tokens_details": {"reasoning_tokens": 9}},
    {"completion_tokens": 3}, {"prompt_tokens": 3}, {},
    {"prompt_tokens": 1, "total_tokens": 1, "completion_tokens": 0, "cost": 0.25, "tier": "x",
     "flag": True},
]  # fmt: skip


def chat_choice(text: str, reasoning: str | None = None) -> dict[str, Any]:
    return {"message": {"content": text, "reasoning_content": reasoning}}


@each("usage", USAGES)
@each(
    ("weights", "n"), [([1], 1), ([1], 4), ([3, 8], 1), ([3, 8], 3), ([0, 0, 0], 2), ([5] * 5, 1)]
)
@each("texts", ["", "abc", "long and short"])
def test_usage_round_trip(usage: dict[str, Any], weights: list[int], n: int, texts: str) -> None:
    """Shares of a usage come together to the same usage."""
    total = len(weights) * n
    answers = [chat_choice(texts * i, "r" * (total - i)) for i in range(total)]
    before = copy.deepcopy(usage)
    parts, _ = shares.of(usage, answers, ["x" * weight for weight in weights], n)
    assert len(parts) == total
    assert usage == before
    merged = choices.merge_usage([_usages(parts[i * n : i * n + n]) for i in range(len(weights))])
    assert merged == usage
    assert list(merged) == list(usage)


def _usages(parts: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [part for part in parts if part is not None]


def test_guesses() -> None:
    """A share that is guessed is not called exact."""
    usage = {"prompt_tokens": 9, "total_tokens": 29, "completion_tokens": 20, "reasoning_tokens": 6}
    choices = [chat_choice("a" * k, "r" * r) for k, r in ((10, 0), (20, 10), (0, 20), (40, 0))]
    wanted = [
        dict(zip(usage, counts, strict=True))
        for counts in ((3, 5, 2, 0), (3, 9, 6, 2), (6, 10, 4, 4), (6, 14, 8, 0))
    ]
    assert shares.of(usage, choices, ["x", "xx"], 2) == (wanted, False)


@each("usage", [None, 1, "x", []])
def test_no_usage(usage: Any) -> None:
    """Without a usage there are no shares, and nothing is guessed."""
    assert shares.of(usage, [chat_choice("a")] * 2, [None], 2) == ([None, None], True)


TELLING: dict[str, list[dict[str, Any]]] = {
    # choices of 7 and of 3 tokens, whose texts are as long as others
    "meta_info": [{"text": "aaaa"[k:], "meta_info": {"completion_tokens": 7 - k}} for k in (0, 4)],
    **{name: [{"text": "a", name: [1] * 7}, {"text": "aaaa", name: [1] * 3}]
       for name in ("token_ids", "response_token_ids")},
    "logprobs": [{"logprobs": {"tokens": ["a"] * k}} for k in (7, 3)],
    "logprobs of a chat": [
        {**chat_choice("a"), "logprobs": {"content": [{}] * k}} for k in (7, 3)
    ],
}  # fmt: skip


@each("choices", TELLING.values(), ids=TELLING)
def test_choices_that_tell(choices: list[dict[str, Any]]) -> None:
    """Tokens that the choices tell are taken, where they sum up."""
    parts = [{"completion_tokens": 7}, {"completion_tokens": 3}]
    assert shares.of({"completion_tokens": 10}, choices, [None], 2) == (parts, True)
    _, is_exact = shares.of({"completion_tokens": 11}, choices, [None], 2)
    assert not is_exact


def test_as_many_as_there_may_be() -> None:
    """Choices that all have as many tokens as they may are exact."""
    choices, usage = [{"text": "a"}, {"text": "bcd"}], {"completion_tokens": 16}
    assert shares.of(usage, choices, [None], 2, limit=8) == ([{"completion_tokens": 8}] * 2, True)
    for limit in (9, None, "8", 8.0):
        assert not shares.of(usage, choices, [None], 2, limit=limit)[1]


def test_prompts() -> None:
    """Each prompt's own tokens are counted where they are known."""
    usage = {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}
    choices: list[dict[str, Any]] = [{"text": "a"}, {"text": "b"}]
    own = [{"prompt_token_ids": [1] * k, "token_ids": [2, 3], **c} for k, c in
           zip((9, 3), choices, strict=True)]  # fmt: skip
    wanted = [{"prompt_tokens": k, "completion_tokens": 2, "total_tokens": k + 2} for k in (9, 3)]
    assert shares.of(usage, own, ["x", "y"], 1) == (wanted, True)
    assert shares.of(usage, choices, [[1] * 9, [1] * 3], 1, limit=2) == (wanted, True)
    assert shares.of(usage, choices, ["x", "y"], 1, wanted) == (wanted, True)
    assert shares.of(usage, choices, ["x", "x"], 1, limit=2)[1]
    assert not shares.of(usage, choices, ["x", "y"], 1, limit=2)[1]
    # Counts that do not come to the whole are counts of something else.
    assert not shares.of(usage, choices, [[1] * 8, [1] * 3], 1, limit=2)[1]


def test_thoughts() -> None:
    """Tokens of reasoning are shared by the length of reasoning."""
    usage = {"prompt_tokens": 1, "total_tokens": 10, "completion_tokens": 9, "reasoning_tokens": 5,
             "completion_tokens_details": {"reasoning_tokens": 5}}  # fmt: skip
    parts = [
        {"prompt_tokens": 1, "total_tokens": all_ + 1, "completion_tokens": all_,
         "reasoning_tokens": some,
         "completion_tokens_details": {"reasoning_tokens": some} if some else None}
        for all_, some in ((7, 5), (2, 0))
    ]  # fmt: skip
    metas = [{"meta_info": {name: part[name] for name in ("completion_tokens", "reasoning_tokens")}}
             for part in parts]  # fmt: skip
    assert shares.of(usage, metas, [None], 2) == (parts, True)
    assert shares.of(usage, [{}, {}], [None], 2, parts) == (parts, True)


def test_what_was_at_hand() -> None:
    """How much of a prompt was cached may be shared out at will; other details may not."""
    choices = [{"text": "a"}, {"text": "b"}]
    for name, is_known in (("cached_tokens", True), ("image_tokens", False)):
        usage = {"prompt_tokens": 4, "prompt_tokens_details": {name: 3}}
        parts, is_exact = shares.of(usage, choices, [[1, 2], [3, 4]], 1)
        assert is_exact is is_known
        assert sum(part["prompt_tokens_details"][name] for part in _usages(parts)) == 3


def test_tool_calls_have_length() -> None:
    """A tool call has a length."""
    call = {"message": {"content": "", "tool_calls": [{"function": {"arguments": "x" * 90}}]}}
    parts, _ = shares.of({"completion_tokens": 10}, [call, chat_choice("a")], [None], 2)
    first, second = _usages(parts)
    assert first["completion_tokens"] > second["completion_tokens"]
