"""Answers of many choices."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from sglang_cached_addon.core.call import Call, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.openai import choices
from tests.tables import each


def answer(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    numbered = [
        {"index": k, "text": "x", "finish_reason": "stop", **choice}
        for k, choice in enumerate(choices)
    ]
    return {"id": "up", "object": "o", "created": 5, "model": "m", "choices": numbered, **fields}


FILL2 = UpstreamCall({}, (0,), 2)


def split_refusal(value: Any, sent: UpstreamCall = FILL2) -> Reason:
    with pytest.raises(Refused) as caught:
        choices.split(sent, value, [None] * len(sent.order))
    return caught.value.reason


UNLIKE: list[Any] = [
    None, [], "x", {}, *({"choices": value} for value in (None, {}, [], [1, 2], [None, None])),
    answer({}), answer({}, {}, {}), {"object": "error", "message": "x"},
    *(answer({"index": first}, {"index": second}) for first, second in (
        (0, 0), (1, 2), (-1, 0), (None, 1), ("0", "1"), ([], 1), ({}, 1), (False, True), (0.0, 1.0),
    )),
]  # fmt: skip


def test_answers_that_are_not_what_was_asked_for() -> None:
    """An answer that is not what was asked for is refused."""
    for value in UNLIKE:
        assert split_refusal(value) is Reason.UNREADABLE, value
    for value in ({"error": {"message": "x"}}, {"error": "x", "choices": None}):
        assert split_refusal(value) is Reason.ERROR


@each(
    ("value", "refusal"),
    [
        (answer({}, {}), None),
        (answer({}, {}, error=None), None),
        (answer({}, {"finish_reason": "length"}), None),
        (answer({}, {"finish_reason": "abort"}), Reason.ABORT),
        (answer({"finish_reason": "abort"}, {}), Reason.ABORT),
        (answer({}, {"finish_reason": None}), Reason.UNFINISHED),
        (answer({}, {}, metadata={"weight_versions": [{}]}), None),
        (answer({}, {}, metadata={"weight_versions": [{}, {}]}), Reason.MIXED_WEIGHTS),
        (answer({}, {"meta_info": {"weight_versions": [{}, {}]}}), Reason.MIXED_WEIGHTS),
    ],
)
def test_what_may_be_stored(value: dict[str, Any], refusal: Reason | None) -> None:
    """An answer may be stored only where each choice ended by itself and is of one set of
    weights."""
    split = choices.split(FILL2, value, [None])
    assert split.refusal is refusal
    assert len(split.generations) == 2


def test_choices_out_of_order() -> None:
    """Choices are sorted by their indexes."""
    value = answer({"text": "a"}, {"text": "b"}, {"text": "c"}, {"text": "d"})
    value["choices"] = [value["choices"][k] for k in (2, 0, 3, 1)]
    split = choices.split(UpstreamCall({}, (4, 7), 2), value, [None, None])
    got = [(g.item, json.loads(g.answer)["choices"][0]) for g in split.generations]
    assert [(item, choice["text"], choice["index"]) for item, choice in got] == [
        (4, "a", 0),
        (4, "b", 0),
        (7, "c", 0),
        (7, "d", 0),
    ]


def test_sample_is_an_answer_for_one() -> None:
    """A sample is an answer of one choice, with its own share of the whole."""
    value = answer(
        {"text": "a", "hidden_states": [1]},
        {"text": "bb", "token_ids": [3, 4]},
        usage={"prompt_tokens": 5, "total_tokens": 11, "completion_tokens": 6},
        metadata={"weight_version": "v"},
        sglext={"output_ids": [[1], [2, 3]], "input_ids": [9]},
        novelty={"x": 1},
    )
    before = copy.deepcopy(value)
    first, second = choices.split(FILL2, value, [None]).generations
    assert value == before
    common = {k: value[k] for k in ("id", "object", "created", "model", "metadata", "novelty")}
    assert json.loads(first.answer) == {
        **common,
        "choices": [{"index": 0, "text": "a", "finish_reason": "stop", "hidden_states": [1]}],
        "usage": {
            "prompt_tokens": 5,
            "total_tokens": 5 + first.tokens,
            "completion_tokens": first.tokens,
        },
        "sglext": {"output_ids": [[1]], "input_ids": [9]},
    }
    assert json.loads(second.answer)["sglext"] == {"output_ids": [[2, 3]], "input_ids": [9]}
    assert json.loads(second.answer)["choices"][0]["token_ids"] == [3, 4]
    assert first.tokens + second.tokens == 6


def call_of(items: int, n: int, rids: tuple[str, ...] = ()) -> Call:
    return Call({}, tuple(b"%d" % i for i in range(items)), n, items > 1, rids)


def dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def test_identity_is_the_first_ones() -> None:
    """The id and the time are those of the first sample."""
    one = answer({"text": "a"}, id="1", created=1, metadata={"weight_version": "x"}, odd=1)
    two = answer({"text": "b"}, id="2", created=2, metadata={"weight_version": "y"}, odd=2)
    merged = json.loads(choices.write(call_of(1, 2), [[dumped(one), dumped(two)]]))
    assert {k: merged[k] for k in ("id", "created", "metadata", "odd")} == {
        k: one[k] for k in ("id", "created", "metadata", "odd")
    }
    assert [(c["index"], c["text"]) for c in merged["choices"]] == [(0, "a"), (1, "b")]


@each("batched", [1, 2])
def test_client_rids_are_put_back(batched: int) -> None:
    """The client's own ids are put into its answer."""
    samples = [[dumped(answer({"meta_info": {"id": "up"}}))] for _ in range(batched)]
    rids = ("r0", "r1")[:batched]
    merged = json.loads(choices.write(call_of(batched, 1, rids), samples))
    assert merged["id"] == "r0"
    assert tuple(c["meta_info"]["id"] for c in merged["choices"]) == rids


def test_rid_without_meta_info() -> None:
    """No `meta_info` is added where there is none."""
    merged = json.loads(choices.write(call_of(1, 1, ("r",)), [[dumped(answer({}))]]))
    assert merged == answer({}, id="r")


@each("others", [{"reasoning_tokens": 0, "completion_tokens_details": None}, {}])
def test_counts_that_only_some_samples_have(others: dict[str, Any]) -> None:
    """A count that only some samples have is summed up, as are its details."""
    plain = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    thought = {"reasoning_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 1}}
    samples = [{**plain, **others}, {**plain, **thought}, {**plain, **others}]
    assert choices.merge_usage([samples]) == {
        "prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9, **thought,
    }  # fmt: skip
