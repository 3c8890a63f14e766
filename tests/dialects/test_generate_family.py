"""Families of greedy `/generate` calls."""

from __future__ import annotations

import copy
from math import inf
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.families import Ended
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.generate import DIALECT
from tests.dialects.streams import record, replay
from tests.dialects.test_generate_stream import stream
from tests.tables import each

FAMILY = DIALECT.family
ROW = [[-0.5, k, None] for k in range(4)]
ANSWER: dict[str, Any] = {
    "text": "a b c d",
    "output_ids": [10, 11, 12, 13],
    "meta_info": {
        "id": "r",
        "finish_reason": {"type": "length", "length": 4},
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "reasoning_tokens": 0,
        "weight_versions": [{"version": "v", "start": 0, "end": 4}],
    },
}
STEPS = [{}, [1, 1], [3, 2], [5, 3]]


def answer(text: str = "a b c d", **meta: Any) -> dict[str, Any]:
    found = copy.deepcopy(ANSWER)
    found["text"] = text
    found["meta_info"] |= meta
    return found


def asked(params: Any = None, **fields: Any) -> dict[str, Any]:
    params = {"temperature": 0} if params is None else params
    return {"text": "a", "sampling_params": params, **fields}


@each(
    ("body", "limit", "scores"),
    [
        (asked(), 128, b""),
        (asked({"max_new_tokens": 9}), 9, b""),
        (asked({"max_new_tokens": None}), inf, b""),
        (asked({"max_new_tokens": 9}, return_logprob=False, logprob_start_len=-1), 9, b""),
        (asked(return_logprob=True), 128, b'{"return_logprob":true}'),
        (asked(return_logprob=True, top_logprobs_num=2), 128,
         b'{"return_logprob":true,"top_logprobs_num":2}'),
        (asked(stream=True, rid="x", lora_path="l", return_hidden_states=False), 128, b""),
    ],
)  # fmt: skip
def test_variants(body: dict[str, Any], limit: float, scores: bytes) -> None:
    """A call's place in its family, from which the call itself can be made again."""
    variant = FAMILY.variant(body)
    assert variant
    assert (variant.limit, variant.scores) == (limit, scores)
    assert FAMILY.ask(body, variant.fields) == body
    other = FAMILY.ask(body, {"max_new_tokens": 7})
    assert other["sampling_params"]["max_new_tokens"] == 7
    assert "return_logprob" not in other


@each(
    "body",
    [
        asked([{"temperature": 0}]), asked({"max_new_tokens": 0}), asked({"max_new_tokens": 1.0}),
        asked({"max_new_tokens": "9"}), asked({"min_new_tokens": "x"}), asked({"odd": 1}),
        asked({"watermark": {}}), asked({"custom_params": {"a": 1}}), asked({"beam_width": 1}),
        asked(return_hidden_states=True), asked(return_prompt_token_ids=True),
        asked(image_data="data:a"), asked(return_logprob=True, logprob_start_len=0),
        asked(return_logprob=1), asked(return_logprob=[True]), asked(top_logprobs_num=1.0),
        asked(token_ids_logprob=[1]), asked(custom_logit_processor="x"), asked(input_embeds=[[1]]),
    ],
)  # fmt: skip
def test_no_variant(body: dict[str, Any]) -> None:
    """Fields that the answer may depend on in another way than the tokens, or that upstream may
    refuse, belong to no family."""
    assert FAMILY.variant(body) is None


@each(
    ("found", "ended"),
    [
        (answer(), Ended(4, 3, False)),
        (answer(finish_reason={"type": "stop", "matched": 2}), Ended(4, 3, True)),
        (answer(completion_tokens=5), None),
        (answer(completion_tokens=None), None),
        (answer(prompt_tokens=None), None),
        (answer(reasoning_tokens=1), None),
        ({**answer(), "text": None}, None),
    ],
)
def test_ended(found: dict[str, Any], ended: Ended | None) -> None:
    assert FAMILY.ended(found) == ended


STOP_STRING = {"finish_reason": {"type": "stop", "matched": "d"}}


@each(
    ("found", "steps", "count", "text"),
    [
        (answer(), STEPS, 2, "a b"),
        (answer(), [STEPS[0], *STEPS[2:]], 1, None),
        (answer(), None, 2, None),
        (answer(), [{}, ["a", 1], [3, 2]], 2, None),
        (answer(), [{}, [1, 1], [3, 2, 3]], 2, None),
        (answer(), [{}, [1, 1], [3, 2, 2, 5]], 2, "a b"),
        (answer(**STOP_STRING), STEPS, 2, None),
        (answer(finish_reason={"type": "stop", "matched": 2}), STEPS, 2, "a b"),
    ],
)
def test_text_at(found: Any, steps: Any, count: int, text: str | None) -> None:
    """A recorded stream tells where tokens end, unless the text was changed behind that."""
    assert FAMILY.text_at(found, steps, count) == text


@each(
    ("params", "meta", "tokens", "skips"),
    [
        ({}, {}, [[10, 11], [10, 11, 12, 13]], True),
        ({"skip_special_tokens": False}, {}, [[10, 11], [10, 11, 12, 13]], False),
        ({}, {"finish_reason": {"type": "stop", "matched": 13}}, [[10, 11], [10, 11, 12]], True),
        ({"no_stop_trim": True}, {"finish_reason": {"type": "stop", "matched": 13}},
         [[10, 11], [10, 11, 12, 13]], True),
        ({"spaces_between_special_tokens": False}, {}, None, True),
    ],
)  # fmt: skip
def test_spelling(params: Any, meta: Any, tokens: Any, skips: bool) -> None:
    """The text of the first tokens is asked for as upstream makes it, and that of all of them, by
    which it is seen whether that is so."""
    found = FAMILY.spelling(asked(params), answer(**meta), 2)
    assert found == (tokens and {"tokens": tokens, "skip_special_tokens": skips})


def test_cut() -> None:
    """All that is told by the token is cut, and what tells the end is that of the limit."""
    tops = [[row] for row in ROW]
    scored = answer(
        output_token_logprobs=ROW, output_top_logprobs=tops, output_token_logprobs_length=4,
        input_token_logprobs=[[None, 1, None]], output_token_ids_logprobs=[],
    )  # fmt: skip
    assert FAMILY.cut(scored, STEPS, 2, "a b") == [{}, [1, 1]]
    assert list(scored["meta_info"])[:2] == ["id", "finish_reason"]
    expected = answer(
        "a b", finish_reason={"type": "length", "length": 2}, completion_tokens=2,
        weight_versions=[{"version": "v", "start": 0, "end": 2}],
        output_token_logprobs=ROW[:2], output_top_logprobs=tops[:2], output_token_logprobs_length=2,
        input_token_logprobs=[[None, 1, None]], output_token_ids_logprobs=[],
    )  # fmt: skip
    assert scored == {**expected, "output_ids": [10, 11]}
    FAMILY.without_scores(scored, None)
    assert "logprob" not in str(scored)
    assert FAMILY.cut(answer(), None, 1, "a") is FAMILY.cut(answer(), STEPS, 1, "a") is None
    with pytest.raises(Refused):
        FAMILY.cut(answer(output_token_logprobs=ROW[:3]), None, 2, "a b")


@each("incremental", [False, True])
@each("scored", [False, True])
def test_streams(incremental: bool, scored: bool) -> None:
    """A recorded stream that was cut is told again as one of that limit, in either style."""
    pieces = [("a", 1), ("ab", 2), ("abc", 3), ("abcd", 4)]
    body = {"text": "a", "stream": True}

    def told(count: int) -> list[Any]:
        finish = {"type": "length", "length": count}
        return stream(pieces[:count], incremental=incremental, scored=scored, finish=finish)

    (whole,) = record(DIALECT, body, told(4))
    for count in (1, 2, 3):
        found, steps = orjson.loads(whole.answer), orjson.loads(whole.deltas)
        text = FAMILY.text_at(found, steps, count)
        assert text == "abcd"[:count]
        deltas = FAMILY.cut(found, steps, count, text)
        cut = Generation(0, orjson.dumps(found), count, orjson.dumps(deltas) if deltas else b"")
        (events,) = replay(DIALECT, body, [cut])
        (expected,) = replay(DIALECT, body, record(DIALECT, body, told(count)))
        assert [event.replace(b',"end":%d' % count, b"") for event in events] == expected
