"""Streams of `/v1/chat/completions`: samples to chunks."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson

from sglang_cached_addon.dialects.chat import DIALECT
from tests.conftest import corpus
from tests.dialects.streams import parsed, worded
from tests.dialects.test_chat_stream import (
    COUNTED,
    JSON_ANSWERS,
    ONE,
    ROWS,
    STREAMS,
    answer,
    ends,
    record,
    replay,
    role,
    says,
    usage,
)
from tests.tables import each


@each(("whole", "deltas"), JSON_ANSWERS.values(), ids=JSON_ANSWERS)
def test_stream_of_a_json_sample(whole: dict[str, Any], deltas: int) -> None:
    """A sample that came as JSON is streamed in full."""
    call = DIALECT.read(ONE)
    sent = DIALECT.trim(call, [1], lambda: "minted")
    samples = DIALECT.split(call, sent, copy.deepcopy(whole)).generations
    events, (end,) = replay(ONE, samples)
    assert len(events) == 1 + deltas + 1
    assert events[0] == worded(role())
    choice = whole["choices"][0]
    finish = parsed(events[-1])["choices"][0]
    assert finish["finish_reason"] == choice["finish_reason"]
    assert finish["matched_stop"] == choice["matched_stop"]
    scored = [parsed(event)["choices"][0]["logprobs"] for event in events]
    assert [each for each in scored if each] == ([ROWS] if choice["logprobs"] else [])
    (again,) = record(ONE, [parsed(event) for event in [*events, end]])
    assert orjson.loads(again.answer) == {**whole, "metadata": None}
    assert [list(c) for c in orjson.loads(again.answer)["choices"]] == [list(choice)]


RECORDED_JSON = [
    pair
    for pair in corpus("chat-")
    if pair["response"]["body"].startswith("{") and '"choices":[{' in pair["response"]["body"]
]


@each("pair", RECORDED_JSON, ids=lambda pair: pair["name"])
def test_stream_of_a_recorded_json_answer(pair: dict[str, Any]) -> None:
    """As above, of SGLang's own answers, with one choice and with two."""
    body, whole = json.loads(pair["request"]["body"]), json.loads(pair["response"]["body"])
    body = {name: value for name, value in body.items() if name not in ("rid", "return_meta_info")}
    body["stream"] = True
    for choice in whole["choices"]:
        choice.pop("meta_info", None)
    call = DIALECT.read(body)
    sent = DIALECT.trim(call, [call.n], lambda: "minted")
    samples = DIALECT.split(call, sent, copy.deepcopy(whole)).generations
    again = record(body, [parsed(event) for events in replay(body, samples) for event in events])
    found = json.loads(DIALECT.write(call, [[sample.answer for sample in again]]))
    assert found == {**whole, "metadata": None}


def test_messages_of_another_server() -> None:
    """Members of other servers are in the stream of a JSON sample."""
    whole = answer({"content": "a", "refusal": "no", "audio": None})
    call = DIALECT.read(ONE)
    samples = DIALECT.split(call, DIALECT.trim(call, [1], lambda: ""), whole).generations
    deltas = [parsed(event)["choices"][0]["delta"] for event in replay(ONE, samples)[0]]
    assert {"refusal": "no"} in deltas
    assert not any("audio" in delta for delta in deltas)


def test_counts_that_are_not_known() -> None:
    """Tokens so far are told where they are not known, and reach the total."""
    (sample,) = record(ONE, [role(), says("a"), says("bcd"), says("e"), ends(), usage(9)])
    events = replay(COUNTED, [sample])[0][1:-1]
    found = [parsed(event)["usage"]["completion_tokens"] for event in events]
    assert found == sorted(found)
    assert found[0] > 0
    assert found[-1] == 9
    assert {parsed(event)["usage"]["prompt_tokens"] for event in events} == {3}
    # Who has not asked is not told.
    (told,) = record(*STREAMS["counted"])
    assert not any("usage" in parsed(event) for event in replay(ONE, [told])[0])
