"""OpenAI's `/v1/completions`."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.completions import DIALECT
from tests.conftest import corpus
from tests.dialects.bodies import item, minted, minter, refusal
from tests.tables import each

PAIRS = [
    pair
    for pair in corpus("completions-")
    if pair["response"]["status"] == 200 and "stream" not in pair["name"]
]


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


CONTENT: dict[str, tuple[Any, Any]] = {
    "prompt": ("b", "A"),
    "suffix": ("a", "b"),
    "model": ("m:a", "m:b"),
    "max_tokens": (1, 2),
    "temperature": (0, 1),
    "top_p": (0.5, 1),
    "top_k": (-1, 1),
    "min_p": (0, 0.5),
    "min_tokens": (0, 1),
    "frequency_penalty": (0, 1),
    "presence_penalty": (0, 1),
    "repetition_penalty": (1, 2),
    "logit_bias": ({"1": 1.0}, {"1": 2.0}),
    "stop": ("a", ["a"]),
    "stop_token_ids": ([1], [2]),
    "stop_regex": ("a", ["a"]),
    "no_stop_trim": (True, False),
    "ignore_eos": (True, False),
    "skip_special_tokens": (True, False),
    "json_schema": ("{}", '{"type":"object"}'),
    "regex": ("a", "b"),
    "ebnf": ("a", "b"),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "custom_params": ({"a": 1}, {"a": 2}),
    "custom_logit_processor": ("a", "b"),
    "watermark": ({"a": 1}, {"a": 2}),
    "lora_path": ("a", "b"),
    "images_config": ({"a": 1}, {"a": 2}),
    "mm_processor_kwargs": ({"a": 1}, {"a": 2}),
    "seed": (1, 2),
    "echo": (True, False),
    "logprobs": (0, 1),
    "return_hidden_states": (True, "last"),
    "return_routed_experts": (True, False),
    "routed_experts_start_len": (0, 1),
    "return_cached_tokens_details": (True, False),
    "return_spec_tokens_details": (True, False),
    "return_token_ids": (True, False),
    "extra_key": ("a", "b"),
    "cache_salt": ("a", "b"),
    "best_of": (1, 2),
    "not_yet_invented": ("a", "b"),
}


@each(("name", "values"), CONTENT.items(), ids=CONTENT)
def test_content(name: str, values: tuple[Any, Any]) -> None:
    """Requests that may be answered differently have different keys."""
    bodies = [one(**{name: value}) for value in values]
    bodies += [one()] if name == "prompt" else [one(), one(**{name: None})]
    assert len({item(DIALECT, body) for body in bodies}) == len(bodies)


@each("prompts", [["1", [1]], [[1, 2], [12], [2, 1]], ["a", "a ", "A", ""], ["[1]", [1]]])
def test_different_prompts(prompts: list[Any]) -> None:
    """Different prompts have different keys."""
    assert len({item(DIALECT, one(prompt=prompt)) for prompt in prompts}) == len(prompts)


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


@each("n", [1, 2, 7])
def test_n_is_not_part_of_the_key(n: int) -> None:
    """The number of samples is not part of the key."""
    assert item(DIALECT, one(n=n)) == item(DIALECT, one())


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
        ({"model": "m"}, Reason.MALFORMED),
        (one(prompt=None), Reason.MALFORMED),
        (one(prompt=1), Reason.MALFORMED),
        (one(prompt={}), Reason.MALFORMED),
        (one(prompt=[]), Reason.MALFORMED),
        (one(prompt=[[]]), Reason.MALFORMED),
        (one(prompt=[[1], []]), Reason.MALFORMED),
        (one(prompt=["a", 1]), Reason.MALFORMED),
        (one(prompt=[1, "a"]), Reason.MALFORMED),
        (one(prompt=["a", [1]]), Reason.MALFORMED),
        (one(prompt=[True]), Reason.MALFORMED),
        (one(prompt=[1, True]), Reason.MALFORMED),
        (one(prompt=[1.0]), Reason.MALFORMED),
        (one(prompt=[[1], [1.0]]), Reason.MALFORMED),
        (one(prompt=[["a"]]), Reason.MALFORMED),
        (one(prompt=[None]), Reason.MALFORMED),
        (one(n=0), Reason.MALFORMED),
        (one(n=None), Reason.MALFORMED),
        (one(n=True), Reason.MALFORMED),
        (one(n=2.0), Reason.MALFORMED),
        (one(n="2"), Reason.MALFORMED),
        (one(rid=["x"]), Reason.MALFORMED),
        (one(rid=1), Reason.MALFORMED),
        (one(lora_path=["x"]), Reason.MALFORMED),
        (batch(lora_path=["x"]), Reason.MALFORMED),
        (batch(rid=["x", "x", "y"]), Reason.MALFORMED),
        (batch(not_yet_invented=[1, 2, 3]), Reason.INSEPARABLE),
        (one(n=2, return_routed_experts=True), Reason.INSEPARABLE),
        (batch(return_routed_experts=True), Reason.INSEPARABLE),
        (one(stream=True, return_hidden_states=True), Reason.STREAM),
        (one(stream=1), Reason.MALFORMED),
        (one(session_params={"id": "s"}), Reason.STATE),
        (one(bootstrap_room=1), Reason.DISAGGREGATION),
    ],
)
def test_refusals(body: dict[str, Any], reason: Reason) -> None:
    """A call that is not understood in full is refused, with its reason."""
    assert refusal(DIALECT, body) is reason


@each(
    ("body", "shortfalls", "wanted", "order", "n"),
    [
        (one(n=5), (5,), one(n=5), (0,), 5),
        (one(n=5, bogus=[1]), (2,), one(n=2, bogus=[1]), (0,), 2),
        (one(n=2), (1,), one(n=1), (0,), 1),
        (batch(), (0, 1, 0), batch(prompt=["b"]), (1,), 1),
        (batch(n=2), (2, 0, 2), batch(prompt=["a", "c"], n=2), (0, 2), 2),
        (batch(n=3), (2, 0, 1), batch(prompt=["a", "a", "c"], n=1), (0, 0, 2), 1),
        (
            batch(n=2, lora_path=["x", "y", "z"], extra_key="k", stop=["1", "2", "3"], bogus={}),
            (0, 1, 2),
            batch(
                prompt=["b", "c", "c"],
                n=1,
                lora_path=["y", "z", "z"],
                extra_key="k",
                stop=["1", "2", "3"],
                bogus={},
            ),
            (1, 2, 2),
            1,
        ),
        (one(prompt=[[1, 2], [3]]), (0, 1), one(prompt=[[3]]), (1,), 1),
        (one(prompt=[1, 2], n=2), (1,), one(prompt=[1, 2], n=1), (0,), 1),
    ],
)
def test_trim(
    body: dict[str, Any],
    shortfalls: tuple[int, ...],
    wanted: dict[str, Any],
    order: tuple[int, ...],
    n: int,
) -> None:
    """An upstream call asks for the samples that are short, and for no others."""
    before = copy.deepcopy(body)
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, shortfalls, minter())
    assert (sent.body, sent.order, sent.n, sent.rids) == (wanted, order, n, {})
    assert body == before
    assert DIALECT.read(sent.body).items == tuple(call.items[i] for i in order)


@each(
    ("body", "shortfalls", "wanted", "rids"),
    [
        (one(rid="r"), (1,), minted(1), {"r": minted(1)}),
        (one(rid="r", n=3), (1,), minted(1), {}),
        (batch(rid="r"), (0, 1, 1), [minted(1), minted(2)], {"r_1": minted(1), "r_2": minted(2)}),
        (batch(rid=["x", "y", "z"]), (0, 0, 1), [minted(1)], {"z": minted(1)}),
        (batch(rid=["x", "y", "z"], n=2), (2, 2, 2), minted(1), {}),
        (batch(rid=["x", "y", "z"], n=2), (2, 1, 0), [minted(k) for k in (1, 2, 3)], {}),
    ],
)
def test_trim_makes_rids_unique(
    body: dict[str, Any], shortfalls: tuple[int, ...], wanted: Any, rids: dict[str, str]
) -> None:
    """An upstream call has ids of its own, so that two calls can have the same `rid`."""
    before = copy.deepcopy(body)
    sent = DIALECT.trim(DIALECT.read(body), shortfalls, minter())
    assert (sent.body["rid"], sent.rids, body) == (wanted, rids, before)


@each(
    ("body", "shortfalls", "texts", "items"),
    [
        (one(), (1,), "x", [0]),
        (one(n=3), (2,), "xy", [0, 0]),
        (batch(), (0, 0, 1), "x", [2]),
        (batch(n=2), (2, 0, 2), "wxyz", [0, 0, 2, 2]),
        (batch(n=2), (1, 0, 2), "xyz", [0, 2, 2]),
        (one(prompt=[[1, 2], [3]]), (1, 1), "xy", [0, 1]),
        (one(prompt=[1, 2, 3]), (1,), "x", [0]),
    ],
)
def test_split(
    body: dict[str, Any], shortfalls: tuple[int, ...], texts: str, items: list[int]
) -> None:
    """Each choice of an answer is a sample of its own prompt."""
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, shortfalls, minter())
    result = DIALECT.split(call, sent, answer(texts, 3))
    is_shared = sent.body["prompt"] in (["a", "c"], ["a", "c", "c"])
    assert result.refusal is (Reason.SHARED_USAGE if is_shared else None)
    assert [g.item for g in result.generations] == items
    assert "".join(json.loads(g.answer)["choices"][0]["text"] for g in result.generations) == texts


def test_prompt_tokens_by_length() -> None:
    """Each prompt of a batch has its own number of tokens."""
    call = DIALECT.read(one(prompt=["aaaaaaaaa", "a"]))
    sent = DIALECT.trim(call, (1, 1), minter())
    result = DIALECT.split(call, sent, answer("xy", prompt_tokens=10))
    usages = [json.loads(g.answer)["usage"] for g in result.generations]
    assert [usage["prompt_tokens"] for usage in usages] == [9, 1]
    assert [usage["total_tokens"] for usage in usages] == [11, 3]


@each("texts", ["", "x", "xyz"])
def test_wrong_number_of_choices(texts: str) -> None:
    """Each choice of an answer is a sample of its own prompt."""
    call = DIALECT.read(one(n=2))
    with pytest.raises(Refused) as caught:
        DIALECT.split(call, DIALECT.trim(call, (2,), minter()), answer(texts))
    assert caught.value.reason is Reason.UNREADABLE


@each("pair", PAIRS, ids=[pair["name"] for pair in PAIRS])
def test_recorded_answers_come_together_again(pair: dict[str, Any]) -> None:
    """A recorded answer is the same after it was taken apart and written."""
    body, recorded = json.loads(pair["request"]["body"]), json.loads(pair["response"]["body"])
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, (call.n,) * len(call.items), minter())
    result = DIALECT.split(call, sent, recorded)
    is_shared = isinstance(body["prompt"], list) and isinstance(body["prompt"][0], str)
    assert result.refusal is (Reason.SHARED_USAGE if is_shared else None)
    answers = [g.answer for g in result.generations]
    pools = [answers[i * call.n : i * call.n + call.n] for i in range(len(call.items))]
    assert json.loads(DIALECT.write(call, pools)) == recorded


@each(("have", "want"), list(itertools.product((1, 2, 3), repeat=2)))
def test_samples_of_one_call_serve_another(have: int, want: int) -> None:
    """Samples of one call answer another with fewer or more."""
    first = DIALECT.read(batch(n=have))
    sent = DIALECT.trim(first, (have,) * 3, minter())
    texts = "abcdefghi"
    result = DIALECT.split(first, sent, answer(texts[: 3 * have], prompt_tokens=6))
    pools: list[list[bytes]] = [[], [], []]
    for generation in result.generations:
        pools[generation.item].append(generation.answer)
    call = DIALECT.read(batch(n=want))
    if want > have:
        sent = DIALECT.trim(call, (want - have,) * 3, minter())
        rest = answer(texts[3 * have : 3 * want], prompt_tokens=6)
        for generation in DIALECT.split(call, sent, rest).generations:
            pools[generation.item].append(generation.answer)
    written = json.loads(DIALECT.write(call, [pool[:want] for pool in pools]))
    assert [c["index"] for c in written["choices"]] == list(range(3 * want))
    assert [c["logprobs"]["tokens"] for c in written["choices"]] == [
        [c["text"]] * 2 for c in written["choices"]
    ]
    assert len({c["text"] for c in written["choices"]}) == 3 * want
    assert written["usage"] == {
        "prompt_tokens": 6,
        "total_tokens": 6 + 6 * want,
        "completion_tokens": 6 * want,
    }
