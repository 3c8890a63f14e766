"""Streams of `/v1/messages`: recorded, and told again as they were."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation, Part
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.messages import MESSAGES
from sglang_cached_addon.dialects.messages_stream import EVENTS
from sglang_cached_addon.wire import sse
from tests.conftest import corpus
from tests.dialects.bodies import minter
from tests.dialects.streams import mutated
from tests.tables import each

Json = dict[str, Any]

ASKED = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}
STREAM = {**ASKED, "stream": True}
PING = {"type": "ping"}
STOP = {"type": "message_stop"}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}
HEAD: Json = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "m"}


def start(**more: Any) -> Json:
    message = {**HEAD, **more, "usage": {"input_tokens": 3, "output_tokens": 0}}
    return {"type": "message_start", "message": message}


def block(index: int, first: Json, *deltas: Json) -> list[Json]:
    """The events of a block."""
    said = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [
        {"type": "content_block_start", "index": index, "content_block": first},
        *said,
        {"type": "content_block_stop", "index": index},
    ]


def text(index: int, *pieces: str) -> list[Json]:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def thinking(index: int, *pieces: str, signature: str = "") -> list[Json]:
    deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces]
    signed = [{"type": "signature_delta", "signature": signature}] * bool(signature)
    return block(index, {"type": "thinking", "thinking": ""}, *deltas, *signed)


def tool(index: int, *pieces: str, name: str = "f") -> list[Json]:
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block(index, {"type": "tool_use", "id": f"t{index}", "name": name, "input": {}}, *deltas)


def end(reason: str | None = "end_turn", tokens: int = 4, **usage: Any) -> Json:
    told = {"output_tokens": tokens, **usage}
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": told}


def said(*blocks: list[Json], reason: str = "end_turn") -> list[Json]:
    """A whole stream of these blocks."""
    return [start(), *(event for events in blocks for event in events), end(reason), STOP]


def named(event: Json) -> bytes:
    """An event as it comes."""
    return sse.event(orjson.dumps(event), event["type"].encode())


def data(event: bytes) -> Any:
    return orjson.loads(sse.data(event, EVENTS) or b"null")


def record(events: Sequence[Any], server: Server = UNKNOWN) -> Generation:
    """The sample of a stream; raises `Refused` where it may not be stored."""
    call = MESSAGES.read(STREAM)
    recorder = MESSAGES.record(call, MESSAGES.trim(call, [1], minter(), server))
    for event in events:
        recorder.add(event)
    split = recorder.split()
    if split.refusal:
        raise Refused(split.refusal)
    (sample,) = split.generations
    return sample


def replay(sample: Generation) -> list[bytes]:
    script = MESSAGES.script(MESSAGES.read(STREAM), [[sample]])
    return [*script.in_turn(), *script.finishes, script.end]


BLOCKS: dict[str, list[list[Json]]] = {
    "text": [text(0, "a", "", "bcd", "\u00e9\U0001f600")],
    "thinking and text": [thinking(0, "hm", "m"), text(1, "a")],
    "a signature": [thinking(0, "hm", signature="abc=="), text(1, "a")],
    "a signature alone": [thinking(0, signature="abc==")],
    "tools": [text(0, "I look."), tool(1, '{"a"', ": [1, 2]}"), tool(2)],
    "text behind a tool": [text(0, "a"), tool(1, "{}"), text(2, "b", "c"), tool(3, '{"b":1}')],
    "thought again": [thinking(0, "a"), text(1, "b"), thinking(2, "c"), text(3, "d")],
    "nothing": [],
    "an empty text": [text(0)],
    "a text that has begun": [block(0, {"type": "text", "text": "ab"},
                                    {"type": "text_delta", "text": "c"})],
    "a tool of another kind": [block(0, {"type": "redacted_thinking", "data": "x"}), text(1, "a")],
    "more members": [block(0, {"type": "text", "text": "", "citations": None})],
}  # fmt: skip
STREAMS: dict[str, list[Json]] = {
    **{name: said(*blocks) for name, blocks in BLOCKS.items()},
    "pings": [start(), PING, *text(0, "a"), PING, end(), STOP],
    "nulls": [start(stop_reason=None, stop_sequence=None), *text(0, "a"),
              {"type": "message_delta", "delta": {"stop_reason": "stop_sequence",
               "stop_sequence": "x"}, "usage": {"output_tokens": 4}}, STOP],
    "all usage at the end": [start(), *text(0, "a"), end(input_tokens=3), STOP],
    "a tool's end": said(tool(0, '{"a": 1}'), reason="tool_use"),
}  # fmt: skip
BOTH = each("server", [UNKNOWN, Server(SGLANG)], ids=["another server", "SGLang"])


@BOTH
@each("events", STREAMS.values(), ids=STREAMS)
def test_round_trip(events: list[Json], server: Server) -> None:
    """A recorded stream is told again byte for byte, but for pings."""
    wanted = [named(event) for event in events if event != PING]
    assert replay(record(events, server)) == wanted


RECORDED = [
    pair
    for pair in corpus("messages-")
    if "event: message_start" in pair["response"]["body"]
    and "event: error" not in pair["response"]["body"]
]


@each("pair", RECORDED, ids=[pair["name"] for pair in RECORDED])
def test_recordings(pair: dict[str, Any]) -> None:
    """A recorded stream is told again byte for byte. One whose tool was cut off is not stored."""
    raw = sse.Splitter().feed(pair["response"]["body"].encode())
    events = [data(event) for event in raw]
    if "tools-cut" in pair["name"]:
        with pytest.raises(Refused):
            record(events, Server(SGLANG))
    else:
        assert replay(record(events, Server(SGLANG))) == raw


def test_json_is_as_sglangs() -> None:
    """JSON of a stream has SGLang's order: what it thinks, what it says, which tools it calls. The
    JSON of another server has the blocks as they came."""
    events = said(*BLOCKS["text behind a tool"], reason="tool_use")
    first, second = ({"type": "tool_use", "id": f"t{k}", "name": "f", "input": given}
                     for k, given in ((1, {}), (3, {"b": 1})))  # fmt: skip
    whole = {**HEAD, "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 4}}
    for server, content in (
        (Server(SGLANG), [{"type": "text", "text": "abc"}, first, second]),
        (UNKNOWN, [{"type": "text", "text": "a"}, first, {"type": "text", "text": "bc"}, second]),
    ):
        sample = record(events, server)
        assert sample.answer == orjson.dumps({**whole, "content": content})
        assert sample.tokens == 4
    assert json.loads(record(said(), Server(SGLANG)).answer)["content"] == [
        {"type": "text", "text": ""}
    ]
    thought = record(said(*BLOCKS["thought again"]), Server(SGLANG))
    assert json.loads(thought.answer)["content"] == [
        {"type": "thinking", "thinking": "ac"},
        {"type": "text", "text": "bd"},
    ]


GOOD = said(text(0, "a", "b"))
SPOILT: dict[str, tuple[list[Any], Reason]] = {
    "nothing": ([], Reason.UNFINISHED),
    "no end": (GOOD[:-2], Reason.UNFINISHED),
    "no reason": ([*GOOD[:-2], end(None), STOP], Reason.UNFINISHED),
    "a block that goes on": ([*GOOD[:-3], *GOOD[-2:]], Reason.UNFINISHED),
    "an error": ([ERROR, STOP], Reason.ERROR),
    "an error in the middle": ([*GOOD[:2], ERROR, *GOOD[2:]], Reason.ERROR),
    "an error behind all": ([*GOOD, ERROR], Reason.ERROR),
    "no usage": ([*GOOD[:-2], {**end(), "usage": {}}, STOP], Reason.NO_USAGE),
    "no usage at all": ([*GOOD[:-2], {**end(), "usage": None}, STOP], Reason.NO_USAGE),
    "a tool that is cut off": (said(tool(0, '{"a": '), reason="max_tokens"), Reason.UNREADABLE),
    "a tool that may be": (said(tool(0, "{}"), reason="max_tokens"), Reason.UNREADABLE),
    "a tool whose input is none": (said(tool(0, "3"), reason="tool_use"), Reason.UNREADABLE),
    **{
        name: (events, Reason.UNREADABLE)
        for name, events in {
            "an event that is none": [*GOOD[:2], "x", *GOOD[2:]],
            "no type": [*GOOD[:2], {}, *GOOD[2:]],
            "an unknown event": [*GOOD[:2], {"type": "surprise"}, *GOOD[2:]],
            "an odd type": [*GOOD[:2], {"type": []}, *GOOD[2:]],
            "two beginnings": [GOOD[0], *GOOD],
            "no beginning": GOOD[1:],
            "content in the beginning": [start(content=[{}]), *GOOD[1:]],
            "a message that is none": [{"type": "message_start", "message": 1}, *GOOD[1:]],
            "two ends": [*GOOD[:-1], end(), STOP],
            "a delta behind the end": [*GOOD[:-1], GOOD[2], STOP],
            "another index": said(text(1, "a")),
            "two blocks at once": [start(), text(0)[0], *text(1, "a"), text(0)[-1], end(), STOP],
            "two ends of a block": [*GOOD[:5], GOOD[4], *GOOD[5:]],
            "a delta of an ended block": [*GOOD[:5], GOOD[2], *GOOD[5:]],
            "a delta of another kind": said(block(0, {"type": "text", "text": ""},
                                                  {"type": "thinking_delta", "thinking": "x"})),
            "a citation": said(block(0, {"type": "text", "text": ""},
                                     {"type": "citations_delta", "citation": {}})),
            "no text": said(block(0, {"type": "text", "text": ""}, {"type": "text_delta"})),
            "an odd text": said(block(0, {"type": "text", "text": ""},
                                      {"type": "text_delta", "text": 1})),
            "two signatures": said(block(0, {"type": "thinking", "thinking": ""},
                                         *[{"type": "signature_delta", "signature": "x"}] * 2)),
            "a block that is none": said([{"type": "content_block_start", "index": 0,
                                           "content_block": 1}]),
            "more members": [*GOOD[:2], {**GOOD[2], "surprise": 1}, *GOOD[3:]],
            "an end that is none": [*GOOD[:-2], {"type": "message_delta", "delta": 1}, STOP],
            "a message of another type": [start(type="other"), *GOOD[1:]],
        }.items()
    },
}  # fmt: skip


@BOTH
@each(("events", "reason"), SPOILT.values(), ids=SPOILT)
def test_never_stored(events: list[Any], reason: Reason, server: Server) -> None:
    """A stream that is broken, or not understood, is not stored, with its reason; its end is told
    all the same."""
    call = MESSAGES.read(STREAM)
    recorder = MESSAGES.record(call, MESSAGES.trim(call, [1], minter(), server))
    refusals = []
    for event in events:
        try:
            is_end = recorder.add(event)[0] is Part.END
            assert is_end is (event == STOP)
        except Refused as refused:
            assert event != STOP
            refusals.append(refused.reason)
    try:
        refusals += [recorder.split().refusal] * (not refusals)
    except Refused as refused:
        refusals.append(refused.reason)
    assert refusals[0] is reason


def test_parts() -> None:
    """Each event is told for what it is."""
    call = MESSAGES.read(STREAM)
    recorder = MESSAGES.record(call, MESSAGES.trim(call, [1], minter()))
    parts = {PING["type"]: Part.OTHER, STOP["type"]: Part.END, ERROR["type"]: Part.ERROR}
    for event in (*STREAMS["pings"], ERROR):
        assert recorder.add(event) == (parts.get(event["type"], Part.DELTA), 0)
        assert not recorder.repeats(orjson.dumps(event))


@each("kind", ["text", "thinking", "tool"])
def test_texts_are_not_parsed(kind: str) -> None:
    """A delta of text or thinking behind another one is taken as it is, and comes to the same as
    one that is parsed; what looks like it, and is another, is not taken so."""
    make = {"text": text, "thinking": thinking, "tool": tool}[kind]
    events = said(make(0, '"a', '": ', "[]", "", " "), reason="tool_use")
    events[2:3] = make(0, '{"a')[1:2]
    events[-4:-3] = make(0, "}")[1:2]
    call = MESSAGES.read(STREAM)
    recorder = MESSAGES.record(call, MESSAGES.trim(call, [1], minter()))
    quick = []
    for event in events:
        raw = orjson.dumps(event)
        for odd in (b" " + raw, raw.replace(b'"index":0', b'"index":1'), raw[:-2] + b',"x":1}}'):
            assert not recorder.repeats(odd)
        if recorder.repeats(raw):
            quick.append(event)
        else:
            recorder.add(event, raw)
    wanted = record(events)
    (sample,) = recorder.split().generations
    assert sample == wanted
    assert len(quick) == (0 if kind == "tool" else 3)


@each("seed", range(8))
def test_whatever_comes(seed: int) -> None:
    """Whatever upstream sends is recorded or refused, and what is recorded can be told again."""
    rng = random.Random(seed)
    stored = 0
    for _ in range(150):
        events = mutated(rng.choice(list(STREAMS.values())), rng)
        try:
            sample = record(events, rng.choice([UNKNOWN, Server(SGLANG)]))
        except Refused:
            continue
        stored += 1
        assert all(isinstance(data(event), dict) for event in replay(sample))
    assert stored
