"""Streams of `/v1/responses`: recorded, and told again as they were."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation, Part
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.responses import RESPONSES
from sglang_cached_addon.dialects.responses_answer import begun, own
from sglang_cached_addon.dialects.responses_stream import EVENTS
from sglang_cached_addon.wire import sse
from tests.conftest import corpus
from tests.dialects.bodies import minter
from tests.dialects.streams import mutated
from tests.tables import each

Json = dict[str, Any]

STREAM: Json = {"model": "m", "input": "a", "stream": True, "user": "u"}
TOOLS = {**STREAM, "tools": [{"type": "function", "name": "f"}]}
HEAD: Json = {
    "id": "resp_1", "object": "response", "created_at": 5, "model": "m", "output": [],
    "status": "completed", "usage": {"input_tokens": 3, "output_tokens": 4}, "tools": [],
    "error": None, "incomplete_details": None, "text": {"format": {"type": "text"}}, "user": "u",
}  # fmt: skip


def answer(*items: Json, **more: Any) -> Json:
    return {**HEAD, "output": list(items), **more}


def numbered(events: Sequence[Json]) -> list[Json]:
    """Events with their numbers."""
    return [{**event, "sequence_number": k} for k, event in enumerate(events)]


def message(*texts: str, index: int = 0, **more: Any) -> tuple[Json, list[Json]]:
    """An item that says a text in pieces, and its events as SGLang sends them."""
    said, at = "".join(texts), {"content_index": 0, "item_id": f"msg_{index}"}
    part = {"annotations": [], "text": said, "type": "output_text", "logprobs": None}
    item = {"id": f"msg_{index}", "content": [part], "role": "assistant", "status": "completed",
            "type": "message", "phase": "final_answer", **more}  # fmt: skip
    early = {**item, "content": [], "status": "in_progress"}

    def event(kind: str, **members: Any) -> Json:
        found = {**members, "output_index": index, "sequence_number": 0}
        return {**dict(sorted(found.items())), "type": f"response.{kind}"}

    return item, [
        event("output_item.added", item=early),
        event("content_part.added", **at, part={**part, "text": ""}),
        *(event("output_text.delta", **at, delta=text, logprobs=[]) for text in texts),
        event("output_text.done", **at, text=said, logprobs=[]),
        event("content_part.done", **at, part=part),
        event("output_item.done", item=item),
    ]


def lifecycle(kind: str, response: Json) -> Json:
    return {"type": f"response.{kind}", "response": response, "sequence_number": 0}


def stream(*parts: tuple[Json, list[Json]], body: Json = STREAM, **more: Any) -> list[Json]:
    """A whole stream of these items."""
    whole = answer(*(item for item, _ in parts), **more)
    early = begun(whole, body)
    said = [event for _, events in parts for event in events]
    ends = lifecycle(whole["status"], whole)
    return numbered([lifecycle("created", early), lifecycle("in_progress", early), *said, ends])


def foreign(*texts: str) -> list[Json]:
    """A stream of another server: fewer events, in another order, with more members."""
    whole = answer(message(*texts)[0], surprise=1)
    at = {"item_id": "msg_0", "output_index": 0, "content_index": 0}
    said = [{"type": "response.output_text.delta", **at, "delta": text, "obfuscation": text * 2}
            for text in texts]  # fmt: skip
    return numbered([
        {"type": "response.created", "response": {**begun(whole, STREAM), "usage": {}}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message"}},
        *said,
        {"type": "response.output_text.annotation.added", **at, "annotation": {"x": 1}},
        {"type": "response.output_text.done", **at, "text": "".join(texts)},
        {"type": "response.completed", "response": whole},
    ])  # fmt: skip


def named(event: Json) -> bytes:
    """An event as it comes."""
    return sse.event(orjson.dumps(event), event["type"].encode())


def data(event: bytes) -> Any:
    return orjson.loads(sse.data(event, EVENTS) or b"null")


def record(events: Sequence[Any], body: Json = STREAM) -> Generation:
    """The sample of a stream; raises `Refused` where it may not be stored."""
    call = RESPONSES.read(body)
    recorder = RESPONSES.record(call, RESPONSES.trim(call, [1], minter()))
    for event in events:
        recorder.add(event)
    split = recorder.split()
    if split.refusal:
        raise Refused(split.refusal)
    (sample,) = split.generations
    return sample


def replay(sample: Generation, body: Json = STREAM) -> list[bytes]:
    script = RESPONSES.script(RESPONSES.read(body), [[sample]])
    return [*script.in_turn(), *script.finishes, script.end]


STREAMS: dict[str, list[Json]] = {
    "text": stream(message("a", "bcd", "é😀")),
    "an empty delta": stream(message("a", "", "b")),
    "two messages": stream(message("a"), message("b", "c", index=1)),
    "nothing": stream(),
    "incomplete": stream(message("a", "b"), status="incomplete"),
    "another server's": foreign("a", "bcd"),
    "another server's, in one": foreign("abc"),
    "no items told": numbered([lifecycle("completed", answer(message("a")[0]))]),
    "no numbers": [{n: v for n, v in event.items() if n != "sequence_number"}
                   for event in stream(message("a", "b"))],
}  # fmt: skip
OWN = ("text", "an empty delta", "two messages", "nothing", "incomplete")


@each("events", STREAMS.values(), ids=STREAMS)
def test_round_trip(events: list[Json]) -> None:
    """A recorded stream is told again byte for byte, and JSON is what its last event has."""
    sample = record(events)
    assert replay(sample) == [named(event) for event in events]
    assert sample.answer == orjson.dumps(events[-1]["response"])
    assert sample.tokens == 4


def test_what_is_kept() -> None:
    """Of SGLang's own events only the lengths of deltas are kept."""
    found = {name: orjson.loads(record(STREAMS[name]).deltas) for name in OWN}
    assert found["text"] == [[1, 3, 2]]
    assert found["two messages"] == [[1], [1, 1]]
    assert found["nothing"] == []
    assert found["an empty delta"] == [[1, 0, 1]]


RECORDED = [
    pair for pair in corpus("responses") if "event: response.created" in pair["response"]["body"]
]


@each("pair", RECORDED, ids=[pair["name"] for pair in RECORDED])
def test_recordings(pair: dict[str, Any]) -> None:
    """A recorded stream is told again byte for byte, of what is kept in short. What is cut off
    where tools may be called is not stored, and neither is what has failed."""
    raw, body = pair["response"]["body"].encode(), json.loads(pair["request"]["body"])
    events = [data(event) for event in sse.Splitter().feed(raw)]
    is_cut = events[-1]["type"] == "response.incomplete" and "tools" in body
    if is_cut or events[-1]["type"] == "response.failed":
        with pytest.raises(Refused) as caught:
            record(events, body)
        assert caught.value.reason is (Reason.UNREADABLE if is_cut else Reason.ERROR)
        return
    sample = record(events, body)
    assert b"".join(replay(sample, body)) == raw
    assert isinstance(next(iter(orjson.loads(sample.deltas)), []), list)


def test_json_is_as_sglangs() -> None:
    """The JSON answer from a stream is what SGLang's JSON is, but for ids and times."""
    noise = ("id", "call_id", "created_at", "usage", "encrypted_content")

    def quiet(value: Any) -> Any:
        if isinstance(value, dict):
            return {n: n in noise or quiet(v) for n, v in value.items()}
        return list(map(quiet, value)) if isinstance(value, list) else value

    pairs = {pair["name"]: pair for pair in corpus("responses")}
    for name in ("responses", "responses-summary", "responses-thinking", "responses-schema",
                 "responses-tools"):  # fmt: skip
        streamed = pairs[f"{name}-stream"]
        events = sse.Splitter().feed(streamed["response"]["body"].encode())
        sample = record(list(map(data, events)), json.loads(streamed["request"]["body"]))
        like = pairs["responses-plain" if name == "responses" else name]
        whole = json.loads(like["response"]["body"])
        assert orjson.dumps(quiet(orjson.loads(sample.answer))) == orjson.dumps(quiet(whole)), name


def test_own_words() -> None:
    """What is echoed is the client's own in each event that has it."""
    for events in (STREAMS["text"], STREAMS["another server's"]):
        mine = {**STREAM, "user": "me"}
        told = list(map(data, replay(record(events), mine)))
        wanted = [
            {**e, "response": own(e["response"], mine)} if "response" in e else e for e in events
        ]
        assert told == wanted != events


GOOD = STREAMS["text"]


def spoilt(place: int, **members: Any) -> list[Any]:
    """A stream with other members in one event."""
    return [*GOOD[:place], {**GOOD[place], **members}, *GOOD[place + 1 :]]


def ended(**members: Any) -> list[Any]:
    """A stream whose last event has another answer."""
    return spoilt(-1, response={**GOOD[-1]["response"], **members})[: len(GOOD)]


SPOILT: dict[str, tuple[list[Any], Reason]] = {
    "nothing": ([], Reason.UNFINISHED),
    "no end": (GOOD[:-1], Reason.UNFINISHED),
    "an error": ([{"type": "error", "message": "no"}], Reason.ERROR),
    "an error in the middle": ([*GOOD[:3], {"error": {"message": "no"}}, *GOOD[3:]], Reason.ERROR),
    "an error behind all": ([*GOOD, {"type": "error"}], Reason.ERROR),
    "an abort": (stream(message("a"), status="failed"), Reason.ABORT),
    "a failure": (stream(status="failed", usage=None), Reason.ERROR),
    "no usage": (ended(usage=None), Reason.NO_USAGE),
    "goes on": (ended(status="in_progress"), Reason.UNFINISHED),
    "of a live tool": (ended(output=[{"type": "web_search_call"}]), Reason.SERVER_TOOLS),
    **{
        name: (events, Reason.UNREADABLE)
        for name, events in {
            "an event that is none": [*GOOD[:2], "x", *GOOD[2:]],
            "no type": [*GOOD[:2], {}, *GOOD[2:]],
            "an unknown event": [*GOOD[:2], {"type": "surprise", "sequence_number": 2}, *GOOD[2:]],
            "an odd type": [*GOOD[:2], {"type": []}, *GOOD[2:]],
            "a number twice": spoilt(3, sequence_number=2),
            "a number that is none": spoilt(3, sequence_number="3"),
            "a number of another kind": spoilt(1, sequence_number=True),
            "one is lost": [*GOOD[:4], *GOOD[5:]],
            "the last number": spoilt(-1, sequence_number=3)[: len(GOOD)],
            "behind the end": [*GOOD, {**GOOD[3], "sequence_number": len(GOOD)}],
            "two ends": [*GOOD, {**GOOD[-1], "sequence_number": len(GOOD)}],
            "a delta that is none": spoilt(4, delta=1),
            "another text": spoilt(4, delta="x"),
            "more text": spoilt(4, delta="aa"),
            "another item": spoilt(4, output_index=1),
            "another part": spoilt(4, content_index=1),
            "no item": [{n: v for n, v in e.items() if n != "output_index"} for e in GOOD],
            "null for the text": spoilt(7, text=None),
            "null for the item": spoilt(-2, item=None)[: len(GOOD)],
            "no answer": spoilt(-1, response=None)[: len(GOOD)],
            "an answer of another type": ended(object="other"),
            "no output": ended(output=[]),
        }.items()
    },
}  # fmt: skip


@each(("events", "reason"), SPOILT.values(), ids=SPOILT)
def test_never_stored(events: list[Any], reason: Reason) -> None:
    """A stream that is broken, or not understood, is not stored, with its reason; its end is told
    all the same."""
    call = RESPONSES.read(STREAM)
    recorder = RESPONSES.record(call, RESPONSES.trim(call, [1], minter()))
    refusals = []
    for event in events:
        kind = event.get("type") if isinstance(event, dict) else None
        is_last = kind in ("response.completed", "response.failed")
        try:
            assert (recorder.add(event)[0] is Part.END) is is_last
        except Refused as refused:
            assert not is_last
            refusals.append(refused.reason)
    try:
        refusals += [recorder.split().refusal] * (not refusals)
    except Refused as refused:
        refusals.append(refused.reason)
    assert refusals[-1 if reason is Reason.ERROR else 0] is reason


def test_tools_that_are_cut_off() -> None:
    """An answer that is cut off where tools may be called is not stored of a stream: SGLang's JSON
    has more of it."""
    events = stream(message("a"), status="incomplete")
    for body in (STREAM, {**TOOLS, "tool_choice": "none"}):
        assert record(events, body)
    inner = {"input": [{"type": "additional_tools", "tools": TOOLS["tools"]}]}
    for body in (TOOLS, {**TOOLS, "tool_choice": "required"}, {**STREAM, **inner}):
        with pytest.raises(Refused) as caught:
            record(events, body)
        assert caught.value.reason is Reason.UNREADABLE
    assert record(stream(message("a")), TOOLS)


def test_parts() -> None:
    """Each event is told for what it is: those that echo what the client has said, deltas, the
    end."""
    call = RESPONSES.read(STREAM)
    recorder = RESPONSES.record(call, RESPONSES.trim(call, [1], minter()))
    parts = [recorder.add(event) for event in GOOD]
    wanted = [Part.ECHO] * 2 + [Part.DELTA] * (len(GOOD) - 3) + [Part.END]
    assert parts == [(part, 0) for part in wanted]
    assert recorder.add({"type": "error"}) == (Part.ERROR, 0)


@each("name", STREAMS)
def test_texts_are_not_parsed(name: str) -> None:
    """A delta behind another one is taken as it is, and comes to the same as one that is parsed."""
    call = RESPONSES.read(STREAM)
    recorder = RESPONSES.record(call, RESPONSES.trim(call, [1], minter()))
    quick = []
    for event in STREAMS[name]:
        raw = orjson.dumps(event)
        for odd in (b" " + raw, raw.replace(b'_index":0', b'_index":3')):
            assert not recorder.repeats(odd)
        if recorder.repeats(raw):
            quick.append(event)
        else:
            recorder.add(event, raw)
    (sample,) = recorder.split().generations
    assert sample == record(STREAMS[name])
    assert len(quick) == {"text": 2, "an empty delta": 1, "two messages": 1, "incomplete": 1}.get(
        name, 0
    )


@each("seed", range(8))
def test_whatever_comes(seed: int) -> None:
    """Whatever upstream sends is recorded or refused, and what is recorded can be told again."""
    rng = random.Random(seed)
    stored = 0
    for _ in range(150):
        events = mutated(rng.choice(list(STREAMS.values())), rng)
        try:
            sample = record(events)
        except Refused:
            continue
        stored += 1
        for event, told in zip(events, replay(sample), strict=True):
            if "response" in event:
                event["response"] = own(event["response"], STREAM)
            assert told == named(event)
    assert stored
