"""Streams of `/generate`: recorded, and told again as they were."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.generate import DIALECT
from tests.dialects import streams
from tests.dialects.streams import but, mixed, worded
from tests.tables import each

ONE = {"text": "a", "stream": True}
TWO = {"text": "a", "stream": True, "sampling_params": {"n": 2}}
BATCH = {"text": ["a", "b"], "stream": True, "sampling_params": {"n": 2}}
LENGTH = {"type": "length", "length": 9}


def record(body: dict[str, Any], events: Sequence[Any]) -> Sequence[Generation]:
    return streams.record(DIALECT, body, events)


def replay(body: dict[str, Any], samples: Sequence[Generation]) -> list[list[bytes]]:
    return streams.replay(DIALECT, body, samples)


def row(k: int) -> list[Any]:
    return [-0.5 - k, 100 + k, f"t{k}"]


Piece = tuple[str, int]
"""The text and the tokens so far."""


def stream(
    pieces: Sequence[Piece],
    *,
    incremental: bool = False,
    scored: bool = False,
    early: int = 0,
    finish: Any = LENGTH,
    reasoned: Sequence[int] = (),
    index: int | None = None,
    with_text: bool = True,
) -> list[dict[str, Any]]:
    """The events of a choice in SGLang's own shape. `early`: ids in an event that it does not
    count yet."""
    events, said, given = [], "", 0
    whole = pieces[-1][1]
    for k, (text, tokens) in enumerate(pieces):
        is_last = k == len(pieces) - 1
        ids = min(whole, tokens if is_last else tokens + early)
        begin = given if incremental else 0
        rows: dict[str, Any] = {}
        if scored:
            rows = {
                "input_token_logprobs": [[None, 1, "a"]],
                "output_token_logprobs": [row(i) for i in range(begin, ids)],
                "output_token_logprobs_length": tokens,
                "input_top_logprobs": [None],
                "output_top_logprobs": [[row(i), row(i + 50)] for i in range(begin, ids)],
            }
        events.append(
            {
                **({"text": text[len(said) :] if incremental else text} if with_text else {}),
                "output_ids": [100 + i for i in range(begin, ids)],
                "meta_info": {
                    "id": f"id{index}",
                    "finish_reason": finish if is_last else None,
                    "prompt_tokens": 1,
                    "weight_version": "default",
                    **rows,
                    "reasoning_tokens": reasoned[k] if reasoned else 0,
                    "completion_tokens": tokens,
                    "cached_tokens": 0,
                    **({"weight_versions": [{"version": "default"}]} if is_last else {}),
                    "dp_rank": None,
                    **({"e2e_latency": 0.5} if is_last else {}),
                    **({"response_sent_to_client_ts": 1.25} if k == 0 else {}),
                },
                **({} if index is None else {"index": index}),
            }
        )
        said, given = text, ids
    return events


PLAIN = [("a", 1), ("ab", 2), ("abc", 3)]
STREAMS: dict[str, list[dict[str, Any]]] = {
    "plain": stream(PLAIN),
    "one event": stream([("abc", 3)]),
    "coalesced": stream([("a", 1), ("abcd", 4), ("abcdef", 6)]),
    "scored": stream(PLAIN, scored=True),
    "scored, one event": stream([("abc", 3)], scored=True),
    "uncounted ids": stream([("a", 1), ("ab", 2), ("abcd", 4)], early=1),
    "uncounted ids, scored": stream([("a", 1), ("ab", 2), ("abcd", 4)], early=1, scored=True),
    "retracted": stream([("a�", 1), ("aé", 2), ("aéb", 3)]),
    "retracted twice": stream([("ab", 1), ("axy", 2), ("axz", 3), ("q", 4)]),
    "retracted at the end": stream([("a stop", 2), ("a ", 3)]),
    "characters": stream([("𝄞", 1), ("𝄞ñ�", 2), ("𝄞ñ�𝄞", 3)]),
    "empty texts": stream([("", 1), ("", 2), ("b", 3), ("b", 4)]),
    "empty": stream([("", 1)]),
    "no tokens": stream([("", 0)]),
    "no tokens at first": stream([("", 0), ("a", 1), ("ab", 2)]),
    "an end without news": stream([("a", 1), ("ab", 2), ("ab", 2)]),
    "reasoning": stream(PLAIN, reasoned=[1, 2, 2]),
    "without text": stream([("", 1), ("", 2)], with_text=False),
    "matched": stream(PLAIN, finish={"type": "stop", "matched": 7}),
    "incremental": stream(PLAIN, incremental=True),
    "incremental, coalesced": stream([("ab", 2), ("abcd", 4), ("abcde", 5)], incremental=True),
    "incremental, scored": stream(PLAIN, incremental=True, scored=True),
    "incremental, two events": stream(PLAIN[:2], incremental=True, scored=True),
    "incremental, characters": stream([("𝄞", 1), ("𝄞ñ�", 2), ("𝄞ñ�𝄞", 3)], incremental=True),
    "incremental, empty texts": stream([("", 1), ("b", 2), ("b", 3)], incremental=True),
    "incremental, no tokens at first": stream(
        [("", 0), ("a", 1), ("ab", 2)], incremental=True, scored=True
    ),
    "incremental, an end without news": stream(
        [("a", 1), ("ab", 2), ("ab", 2)], incremental=True, scored=True
    ),
    "incremental, reasoning": stream(PLAIN, incremental=True, reasoned=[1, 2, 2]),
    "incremental, without text": stream([("", 1), ("", 2)], incremental=True, with_text=False),
}


def test_texts_of_both_styles_are_one() -> None:
    """A sample is the same in either style of streams."""
    samples = [record(ONE, stream(PLAIN, scored=True, incremental=i))[0] for i in (False, True)]
    assert samples[0].answer == samples[1].answer
    assert samples[0].deltas != samples[1].deltas


FOUR = [
    stream(PLAIN, index=0),
    stream([("x", 1)], index=1),
    stream([("y�", 1), ("yé", 2)], index=2, scored=True),
    stream([("", 2), ("z", 3)], index=3),
]


@each("seed", range(10))
def test_batch(seed: int) -> None:
    """Two prompts that are streamed together are told apart."""
    samples = record(BATCH, mixed(FOUR, seed))
    assert [sample.item for sample in samples] == [0, 0, 1, 1]
    assert [sample.tokens for sample in samples] == [3, 1, 2, 3]
    assert replay(BATCH, samples) == [[worded(e) for e in events] for events in FOUR]
    # As the only sample of a call, it has no index.
    (alone,) = replay(ONE, samples[:1])
    assert alone == [worded(event) for event in stream(PLAIN, index=None) if not (
        event["meta_info"].update(id="id0"))]  # fmt: skip


def changed(events: list[dict[str, Any]], place: int, **meta: Any) -> list[dict[str, Any]]:
    found = copy.deepcopy(events)
    found[place]["meta_info"].update(meta)
    return found


ERROR = {"error": {"message": "no", "code": 400}}
ABORT = {"type": "abort", "message": "no", "status_code": None, "err_type": None}
GOOD = stream(PLAIN)
DOUBLE = [*stream(PLAIN, index=0), *stream(PLAIN, index=1)]
NEWS = stream(PLAIN, incremental=True)
BAD: dict[str, Any] = {
    # streams of `ONE` that are not understood
    "an index of one": but(GOOD, 0, index=1),
    "behind the finish": [*GOOD, GOOD[-1]],
    "no meta": [{"text": "a", "output_ids": []}],
    "no ids": but(GOOD, 0, output_ids=None),
    "no tokens": changed(GOOD, 1, completion_tokens=None),
    "text that is none": but(GOOD, 1, text=None),
    "a lost token": but(NEWS, 1, output_ids=[]),
    "a lost event": [NEWS[0], NEWS[2]],
    "a lost first event": NEWS[1:],
    "two styles": [*GOOD[:2], NEWS[2]],
    "two styles, the other way": [*NEWS[:2], GOOD[2]],
    "news of a kind of its own": changed(NEWS, 2, confidence=[0.5]),
    "text without tokens": stream([("a", 0), ("ab", 0), ("abc", 1)]),
}


@each(
    ("events", "reason"),
    [
        (stream([("", 0)], finish=ABORT), Reason.ABORT),
        (stream(PLAIN, finish=ABORT, incremental=True), Reason.ABORT),
        (
            changed(GOOD, -1, weight_versions=[{"version": 1}, {"version": 2}]),
            Reason.MIXED_WEIGHTS,
        ),
    ],
)
def test_whole_but_not_stored(events: list[Any], reason: Reason) -> None:
    """A stream that was aborted at once, or is of two sets of weights, is not stored."""
    with pytest.raises(Refused) as caught:
        record(ONE, events)
    assert caught.value.reason is reason


def test_what_only_the_last_event_has() -> None:
    """Members that only the last event of a stream has are in the last of its replay alone,
    whichever they are."""
    events = stream(PLAIN)
    del events[-1]["meta_info"]["weight_versions"]
    events[-1]["meta_info"]["novelty"] = 1
    assert replay(ONE, record(ONE, events)) == [[worded(event) for event in events]]
