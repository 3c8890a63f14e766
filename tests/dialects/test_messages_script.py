"""Samples of `/v1/messages` that came as JSON, as streams."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.messages_answer import split
from sglang_cached_addon.dialects.messages_script import script
from tests.conftest import corpus
from tests.dialects.streams import mutated
from tests.dialects.test_messages_answer import GOOD, TEXT
from tests.dialects.test_messages_stream import HEAD, data, record
from tests.tables import each

THOUGHT = {"type": "thinking", "thinking": "hm"}
TOOL = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, "\u00e9"]}}
EMPTY = {"type": "text", "text": ""}


def events(answer: dict[str, Any]) -> list[Any]:
    told = script(Generation(0, orjson.dumps(answer), 0))
    return [data(event) for event in (*told.in_turn(), *told.finishes, told.end)]


RECORDED = [
    json.loads(pair["response"]["body"])
    for pair in corpus("messages-")
    if pair["response"]["status"] == 200 and "stream" not in pair["name"]
]
MADE = [
    {**GOOD, "content": content}
    for content in (
        [EMPTY], [THOUGHT, TEXT], [THOUGHT], [TEXT, TOOL, {**TOOL, "input": {}}],
        [{**THOUGHT, "signature": "x"}, TEXT], [{"type": "surprise", "x": 1}, TEXT],
    )
]  # fmt: skip


@each("answer", [*RECORDED, *MADE])
def test_whole(answer: dict[str, Any]) -> None:
    """The stream of a sample comes to the same sample; it is SGLang's order that both have."""
    if answer["content"][0]["type"] == "surprise":
        answer = {**answer, "content": answer["content"][::-1]}
    sample = record(events(answer), Server(SGLANG))
    assert sample.answer == orjson.dumps(answer)


def test_events() -> None:
    """Each block has one delta; a text that is there only because there has to be a block is none,
    and is no empty block either."""
    message = {**HEAD, "usage": {"input_tokens": 3, "output_tokens": 0}}
    end = {"stop_reason": "end_turn"}
    last = [
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    first = {"type": "message_start", "message": message}
    assert events({**GOOD, "content": [EMPTY]}) == [first, *last]
    begun, said, ended, *rest = events({**GOOD, "content": [TOOL]})[1:]
    assert begun["content_block"] == {**TOOL, "input": {}}
    assert json.loads(said["delta"]["partial_json"]) == TOOL["input"]
    assert (ended, rest) == ({"type": "content_block_stop", "index": 0}, last)


def test_nulls() -> None:
    """A server that says null in JSON says so in streams."""
    first, *_, end, _ = events({**GOOD, "stop_sequence": None})
    assert first["message"]["stop_reason"] is first["message"]["stop_sequence"] is None
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


@each("seed", range(8))
def test_whatever_is_stored(seed: int) -> None:
    """Whatever is stored as JSON can be streamed."""
    rng = random.Random(seed)
    stored = 0
    for _ in range(200):
        try:
            (sample,) = split(mutated(rng.choice([*RECORDED, *MADE]), rng)).generations
        except Refused:
            continue
        stored += 1
        told = script(sample)
        assert all(isinstance(data(event), dict) for event in (*told.in_turn(), told.end))
    assert stored
