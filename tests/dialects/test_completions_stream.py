"""Streams of `/v1/completions`: recorded, and told again as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.completions import DIALECT
from tests.dialects import streams
from tests.dialects.streams import but, mixed, told, without, worded
from tests.tables import each

ONE = {"prompt": "a", "stream": True}
TWO = {"prompt": "a", "stream": True, "n": 2}
BATCH = {"prompt": ["a", "b"], "stream": True, "n": 2}
COUNTED = {**ONE, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def record(body: dict[str, Any], events: Sequence[Any]) -> Sequence[Generation]:
    return streams.record(DIALECT, body, events)


def replay(body: dict[str, Any], samples: Sequence[Generation]) -> list[list[bytes]]:
    return streams.replay(DIALECT, body, samples)


def usage(prompt: int, completion: int, rid: str = "id0", **more: Any) -> dict[str, Any]:
    """SGLang's last chunk: what is null is left out."""
    counts = {"prompt_tokens": prompt, "total_tokens": prompt + completion}
    counts |= {"completion_tokens": completion, **more, "reasoning_tokens": 0}
    head = {"id": rid, "object": "text_completion", "created": 7, "model": "m"}
    return {**head, "choices": [], "usage": counts}


def scores(first: int, count: int, tops: int = 2, echoed: bool = False) -> dict[str, Any]:
    """SGLang's log-probabilities of some tokens."""
    tokens = [f"t{k}" for k in range(first, first + count)]
    known = [None if echoed and k == 0 else -0.5 - k for k in range(first, first + count)]
    return {
        "text_offset": [-1] * count,
        "token_logprobs": known,
        "tokens": tokens,
        "top_logprobs": [
            None if value is None else {f"{token}{i}": value - i for i in range(tops)}
            for token, value in zip(tokens, known, strict=True)
        ]
        if tops
        else [],
    }


def stream(
    texts: Sequence[str],
    *,
    index: int = 0,
    logprobs: Sequence[Any] = (),
    counts: Sequence[int] = (),
    finish: Any = "length",
    matched: Any = None,
    **end: Any,
) -> list[dict[str, Any]]:
    """The chunks of a choice in SGLang's own shape."""
    events = []
    for k, text in enumerate(texts):
        is_last = k == len(texts) - 1
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs[k] if logprobs else None,
            "finish_reason": finish if is_last else None,
            "matched_stop": matched if is_last else None,
            **(end if is_last else {}),
        }
        told = None
        if counts:
            told = {"prompt_tokens": 3, "total_tokens": 3 + counts[k]}
            told |= {"completion_tokens": counts[k], "prompt_tokens_details": None}
            told |= {"reasoning_tokens": 0, "completion_tokens_details": None}
        head = {"id": f"id{index}", "object": "text_completion", "created": 7, "model": "m"}
        events.append({**head, "choices": [choice], "usage": told})
    return events


STREAMS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "plain": (ONE, [*stream(["a", "b", "c"]), usage(3, 3)]),
    "one chunk": (ONE, [*stream(["abc"]), usage(3, 3)]),
    "empty": (ONE, [*stream([""]), usage(3, 1)]),
    "no tokens": (ONE, [*stream([""]), usage(3, 0)]),
    "empty texts": (ONE, [*stream(["", "a", "", ""]), usage(3, 4)]),
    "coalesced": (ONE, [*stream(["a", "bcd", "ef"]), usage(3, 6)]),
    "characters": (ONE, [*stream(["𝄞", "ñ�", "\u2028\0", "𝄞"]), usage(3, 4)]),
    "matched": (ONE, [*stream(["a", ""], finish="stop", matched=7), usage(3, 2)]),
    "matched text": (ONE, [*stream(["a", ""], finish="stop", matched="\n"), usage(3, 2)]),
    "cached": (
        ONE, [*stream(["a"]), usage(3, 1, prompt_tokens_details={"cached_tokens": 2})],
    ),
    "scored": (
        {**ONE, "logprobs": 2},
        [*stream(["a", "b"], logprobs=[scores(0, 1), scores(1, 3)]), usage(3, 4)],
    ),
    "scored, none of the others": (
        {**ONE, "logprobs": 0},
        [*stream(["a", "b"], logprobs=[scores(0, 1, 0), scores(1, 3, 0)]), usage(3, 4)],
    ),
    "scored, an end without": (
        {**ONE, "logprobs": 2}, [*stream(["a", ""], logprobs=[scores(0, 1), None]), usage(3, 1)],
    ),
    "scored, an empty chunk": (
        {**ONE, "logprobs": 2},
        [*stream(["a", "b"], logprobs=[scores(0, 0), scores(0, 2)]), usage(3, 2)],
    ),
    "echo": (
        {**ONE, "logprobs": 2, "echo": True},
        [*stream(["a prompt: a", "b"], logprobs=[scores(0, 4, echoed=True), scores(4, 1)]),
         usage(3, 2)],
    ),
    "counted": (COUNTED, [*stream(["a", "bc", ""], counts=[1, 5, 6]), usage(3, 6)]),
    "counted and scored": (
        {**COUNTED, "logprobs": 2},
        [*stream(["a", "b"], counts=[1, 3], logprobs=[scores(0, 1), scores(1, 2)]), usage(3, 3)],
    ),
}  # fmt: skip


FOUR = [
    stream(["a", "b"], index=0),
    stream(["𝄞"], index=1),
    stream(["", "d", "�"], index=2, finish="stop", matched=1),
    stream(["", ""], index=3),
]


@each("seed", range(10))
def test_batch(seed: int) -> None:
    """Two prompts that are streamed together are told apart."""
    end = usage(10, 8)
    samples = record(BATCH, [*told(mixed(FOUR, seed), (3, 3, 7, 7)), end])
    with pytest.raises(Refused) as caught:
        record(BATCH, [*mixed(FOUR, seed), end])
    assert caught.value.reason is Reason.SHARED_USAGE
    assert [sample.item for sample in samples] == [0, 0, 1, 1]
    assert [sample.tokens for sample in samples] == [2, 1, 3, 2]
    assert [orjson.loads(sample.answer)["id"] for sample in samples] == ["id0", "id1", "id2", "id3"]
    assert replay(BATCH, samples) == [*([worded(e) for e in events] for events in FOUR), [
        worded(end)]]  # fmt: skip


ERROR = {"error": {"object": "error", "message": "no", "type": "InternalServerError", "code": 500}}
GOOD = [*stream(["a", "b", "c"]), usage(3, 3)]
END = usage(3, 6)
DOUBLE = [*stream(["a", "b", "c"]), *stream(["d", "e", "f"], index=1), END]


def scored(*rows: Any) -> list[Any]:
    """A stream with these log-probabilities in its chunks."""
    return [*stream(["a", "b"][: len(rows)], logprobs=rows), END]


BAD: dict[str, Any] = {
    # streams of `ONE` that are not understood
    "hidden states behind the finish": [
        *GOOD[:3], *stream([""], finish=None, hidden_states=[1.0]), GOOD[3],
    ],
    "token ids": but(GOOD, 1, token_ids=[1]),
    "token ids in the end": but(GOOD, 2, token_ids=[1]),
    "an unknown member in place of a known": but(without(GOOD, 0, "matched_stop"), 0, x=1),
    "no text": without(GOOD, 1, "text"),
    "text that is none": but(GOOD, 1, text=None),
    "odd scores": scored([]),
    "scores without tokens": scored({"token_logprobs": [1]}),
    "scores that are none": scored({**scores(0, 1), "tokens": None}),
    "fewer scores than tokens": scored({**scores(0, 2), "top_logprobs": [None]}),
    "scores of another kind": scored(scores(0, 1), {**scores(1, 1), "x": [1]}),
    "scores that are lost": scored(scores(0, 1), scores(1, 1, 0)),
}  # fmt: skip
