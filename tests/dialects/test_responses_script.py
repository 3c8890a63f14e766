"""Samples of `/v1/responses` that came as JSON, as streams."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.responses_answer import split
from sglang_cached_addon.dialects.responses_script import script
from tests.conftest import corpus
from tests.dialects.streams import mutated
from tests.dialects.test_responses_stream import STREAM, answer, data, message, record, stream
from tests.tables import each

Json = dict[str, Any]

HM = {"text": "hm", "type": "reasoning_text"}
THOUGHT = {"id": "rs_1", "summary": [], "type": "reasoning", "content": [HM],
           "encrypted_content": None, "status": "completed"}  # fmt: skip
TOLD = {**THOUGHT, "summary": [{"text": "hm", "type": "summary_text"}]}
CALL = {"arguments": '{"a": "é"}', "call_id": "c", "name": "f", "type": "function_call",
        "id": "fc_1", "status": "completed"}  # fmt: skip
CUSTOM = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "g", "input": "x"}
ANSWERS: dict[str, Json] = {
    "text": answer(message("abc")[0]),
    "nothing": answer(),
    "thinking and tools": answer(THOUGHT, message("a", index=1)[0], CALL, CUSTOM),
    "a summary": answer(TOLD),
    "another item": answer({"type": "surprise", "x": [1]}),
}


def events(whole: Json, body: Json = STREAM) -> list[Any]:
    told = script(Generation(0, orjson.dumps(whole), 0), body)
    return [data(event) for event in (*told.in_turn(), *told.finishes, told.end)]


def test_as_sglangs() -> None:
    """A text is one delta, and all else is as SGLang sends it."""
    assert events(ANSWERS["text"]) == stream(message("abc"))
    assert events(ANSWERS["nothing"]) == stream()


@each("whole", ANSWERS.values(), ids=ANSWERS)
def test_round_trip(whole: Json) -> None:
    """The stream of an answer is recorded as that answer, and of deltas only their lengths."""
    sample = record(events(whole))
    assert sample.answer == orjson.dumps(whole)
    assert all(len(piece) <= 1 for piece in orjson.loads(sample.deltas))


PAIRS = [
    (whole, streamed)
    for whole in corpus("responses")
    for streamed in corpus("responses")
    if streamed["name"] == f"{whole['name']}-stream" and "cut" not in whole["name"]
]


@each(("whole", "streamed"), PAIRS, ids=[whole["name"] for whole, _ in PAIRS])
def test_recordings(whole: Json, streamed: Json) -> None:
    """The stream of a recorded answer has the events of the recorded stream, but for where texts
    are cut, and for ids."""
    body = json.loads(streamed["request"]["body"])
    if whole["response"]["status"] != 200 or streamed["response"]["status"] != 200:
        return
    told = events(json.loads(whole["response"]["body"]), body)
    raw = streamed["response"]["body"].split("\n\n")[:-1]
    recorded = [json.loads(event.partition("data: ")[2]) for event in raw]
    assert shapes(told) == shapes(recorded)


def shapes(said: list[Json]) -> list[Any]:
    """The types of events, and the names of their members in their order; deltas once."""
    found: list[Any] = []
    for event in said:
        inner = [list(v) for v in event.values() if isinstance(v, dict)]
        shape = (event["type"], list(event), inner)
        if not found or found[-1] != shape:
            found.append(shape)
    return found


@each("seed", range(8))
def test_whatever_is_stored(seed: int) -> None:
    """Whatever is stored as JSON can be streamed."""
    rng = random.Random(seed)
    for _ in range(200):
        try:
            found = split(mutated(rng.choice(list(ANSWERS.values())), rng))
        except Refused:
            continue
        if not found.refusal:
            told = script(found.generations[0], STREAM)
            assert all(isinstance(data(event), dict) for event in (*told.in_turn(), told.end))
