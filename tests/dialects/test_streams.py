"""What holds of the streams of all APIs: recorded, replayed as they were, or refused."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

import orjson
import pytest

from sglang_cached_addon.core.call import Part
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import chat, completions, generate, installed
from sglang_cached_addon.dialects.base import Generating
from tests.conftest import corpus
from tests.dialects import test_chat_stream as chats
from tests.dialects import test_completions_stream as texts
from tests.dialects import test_generate_stream as natives
from tests.dialects.streams import (
    but,
    by_choice,
    ended,
    mixed,
    mutated,
    parsed,
    place_of,
    record,
    recorded,
    replay,
    without,
    worded,
)
from tests.tables import each

Body = dict[str, Any]


class Api(NamedTuple):
    """An API, and streams of it."""

    dialect: Generating
    one: Body
    two: Body
    good: list[Any]
    """A stream that answers `one`."""
    double: list[Any]
    """A stream that answers `two`."""
    abort: Any
    """The finish reason of a choice that was aborted."""
    odd: Any
    """A finish reason of another API."""
    bad: dict[str, Any]
    streams: dict[str, tuple[Body, list[Any]]]


CHAT = Api(chat.DIALECT, chats.ONE, chats.TWO, chats.GOOD, chats.DOUBLE, "abort",
           {"type": "stop"}, chats.BAD, chats.STREAMS)  # fmt: skip
TEXT = Api(completions.DIALECT, texts.ONE, texts.TWO, texts.GOOD, texts.DOUBLE, "abort",
           {"type": "stop"}, texts.BAD, texts.STREAMS)  # fmt: skip
NATIVE = Api(generate.DIALECT, natives.ONE, natives.TWO, natives.GOOD, natives.DOUBLE,
             natives.ABORT, "stop", natives.BAD,
             {name: (natives.ONE, events) for name, events in natives.STREAMS.items()})  # fmt: skip
OPENAI = (CHAT, TEXT)
ALL = (*OPENAI, NATIVE)


def name_of(api: Api) -> str:
    return api.dialect.name


SHOWN = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
RECORDED = [
    (api, pair)
    for api, name in ((CHAT, "chat-stream"), (TEXT, "completions-stream"),
                      (NATIVE, "generate-stream"))
    for pair in corpus(name)
    if '"error"' not in pair["response"]["body"]
]  # fmt: skip


@each(("api", "pair"), RECORDED, ids=[pair["name"] for _, pair in RECORDED])
def test_recordings(api: Api, pair: dict[str, Any]) -> None:
    """A recorded stream is replayed byte for byte."""
    body, raw = json.loads(pair["request"]["body"]), recorded(pair)
    events = [parsed(event) for event in raw]
    if events[-1].get("choices"):
        with pytest.raises(Refused) as caught:
            record(api.dialect, body, events)
        assert caught.value.reason is Reason.NO_USAGE
        tokens = body["max_tokens"] * body.get("n", 1)
        usage = (chats.usage(tokens) if api is CHAT else texts.usage(1, tokens))["usage"]
        head = {name: events[0][name] for name in ("id", "object", "created", "model")}
        events.append({**head, "choices": [], "usage": usage})
        raw.append(worded(events[-1]))
    if api is CHAT:
        assert body.get("n", 1) > 1 or chats.own_ids(raw) == raw
        raw = chats.own_ids(raw)
    assert replay(api.dialect, body, record(api.dialect, body, events)) == by_choice(raw)


def orders(value: Any) -> Any:
    """The names in an object and in those in it, in their order."""
    if isinstance(value, list):
        return [orders(each) for each in value[:1]]
    if not isinstance(value, dict):
        return None
    # What was cached is told only where something was.
    return [(k, k != "cached_tokens_details" and orders(v)) for k, v in value.items()]


@each(
    ("api", "stream", "like"),
    [
        (CHAT, "chat-stream-n2-usage", "chat-n1"),
        (TEXT, "completions-stream-usage", "completions-n1"),
        (NATIVE, "generate-stream", "generate-n1"),
    ],
)
def test_json_is_as_sglangs(api: Api, stream: str, like: str) -> None:
    """The JSON answer from a stream has the members that SGLang's has, in the same order."""
    pair, whole = [next(p for p in corpus(name) if p["name"] == name) for name in (stream, like)]
    body, wanted = json.loads(pair["request"]["body"]), json.loads(whole["response"]["body"])
    wanted = {**wanted, "metadata": None} if "metadata" in wanted else wanted
    for sample in record(api.dialect, body, [parsed(event) for event in recorded(pair)]):
        found = orjson.loads(sample.answer)
        assert orders(found) == orders(wanted)
        assert found.get("object") == wanted.get("object")


STREAMS = {
    f"{name_of(api)}: {name}": (api, *stream) for api in ALL for name, stream in api.streams.items()
}


@each(("api", "body", "events"), STREAMS.values(), ids=STREAMS)
def test_round_trip(api: Api, body: Body, events: list[Any]) -> None:
    """A recorded stream is replayed with the same events."""
    wanted = by_choice([worded(event) for event in events])
    assert replay(api.dialect, body, record(api.dialect, body, events)) == wanted


WHOLE = [
    pair
    for name in ("chat-", "completions-", "generate-")
    for pair in corpus(name)
    if pair["response"]["body"].startswith(('{"id"', '{"text"'))
    and "-list-" not in pair["name"]  # whose prompts share a count that cannot be told apart
    and "chat-rid" not in pair["name"]  # whose `meta_info` no stream has
]


@each("pair", WHOLE, ids=[pair["name"] for pair in WHOLE])
def test_stream_of_a_json_sample(pair: dict[str, Any]) -> None:
    """A sample that came as JSON is streamed in full, and the stream comes to the same JSON."""
    body, answer = json.loads(pair["request"]["body"]), json.loads(pair["response"]["body"])
    dialect = installed()["POST", pair["request"]["path"]]
    call = dialect.read({name: value for name, value in body.items() if name != "rid"})
    sent = dialect.trim(call, [call.n] * len(call.items), lambda: "minted")
    samples = dialect.split(call, sent, answer).generations
    streamed = {**call.body, "stream": True}
    events = [parsed(event) for events in replay(dialect, streamed, samples) for event in events]
    again = record(dialect, streamed, events)
    pools = [again[i * call.n : (i + 1) * call.n] for i in range(len(call.items))]
    whole = json.loads(dialect.write(call, [[s.answer for s in pool] for pool in pools]))
    wanted = {**answer, "metadata": None} if "metadata" in answer else answer
    assert whole == wanted
    assert orders(whole) == orders(wanted)


@each(
    ("api", "events"),
    [
        (CHAT, [chats.role(), chats.says("a"), chats.says("bcd"), chats.says("e"), chats.ends(),
                chats.usage(9)]),
        (TEXT, [*texts.stream(["a", "bcd", "e"]), texts.usage(3, 9)]),
    ],
)  # fmt: skip
def test_counts_that_are_not_known(api: Api, events: list[Any]) -> None:
    """Tokens so far are told where they are not known, and reach the total; who has not asked for
    them is not told."""
    (sample,) = record(api.dialect, api.one, events)
    said, _ = replay(api.dialect, {**api.one, **SHOWN}, [sample])
    told = [usage for event in said if (usage := parsed(event).get("usage"))]
    found = [usage["completion_tokens"] for usage in told]
    assert len(found) == 3
    assert found == sorted(found)
    assert found[0] > 0
    assert found[-1] == 9
    assert {usage["prompt_tokens"] for usage in told} == {3}
    (sample,) = record(api.dialect, *api.streams["counted"])
    assert not any(
        parsed(event).get("usage") for event in replay(api.dialect, api.one, [sample])[0]
    )


@each("api", ALL, ids=name_of)
def test_client_rid(api: Api) -> None:
    """Each event has the client's own id."""
    samples = record(api.dialect, api.one, api.good)
    said = replay(api.dialect, {**api.one, "rid": "mine"}, samples)
    found = [parsed(event) for events in said for event in events]
    assert {event.get("id") or event["meta_info"]["id"] for event in found} == {"mine"}


@each(
    ("api", "events", "parts"),
    [
        (CHAT, [chats.role(1), chats.calls("{}", "f", index=1), chats.ends(index=1)],
         [Part.DELTA, Part.DELTA, Part.FINISH]),
        (TEXT, texts.stream(["a", "b"], index=1), [Part.DELTA] * 2),
        (NATIVE, natives.stream(natives.PLAIN, index=1), [Part.STATE] * 3),
        (NATIVE, natives.stream(natives.PLAIN, index=1, incremental=True),
         [Part.STATE, Part.DELTA, Part.DELTA]),
    ],
)  # fmt: skip
def test_parts(api: Api, events: list[Any], parts: list[Part]) -> None:
    """Each event is told for what it is, and of which choice."""
    call = api.dialect.read(api.two)
    recorder = api.dialect.record(call, api.dialect.trim(call, [2], lambda: "minted"))
    assert [recorder.add(event) for event in events] == [(part, 1) for part in parts]
    if api in OPENAI:
        assert recorder.add(api.good[-1]) == (Part.USAGE, 0)
    assert recorder.add(chats.ERROR) == (Part.ERROR, 0)


def spoilt(api: Api) -> dict[str, tuple[Body, list[Any], Reason]]:
    """Streams that are not stored, and why."""
    one, two, good, double = api.one, api.two, api.good, api.double
    error = {"error": {"message": "no", "code": 500}}
    indexes = (2, -1, True, 0.0, "0", None)
    return {
        "nothing": (one, [], Reason.UNFINISHED),
        "an error": (one, [error], Reason.ERROR),
        "an error, then all": (one, [error, *good], Reason.ERROR),
        "an error in the middle": (one, [*good[:2], error, *good[2:]], Reason.ERROR),
        "an error behind all": (one, [*good, error], Reason.ERROR),
        "abort": (one, ended(good, 0, api.abort), Reason.ABORT),
        "abort of the first": (two, ended(double, 0, api.abort), Reason.ABORT),
        "abort of the second": (two, ended(double, 1, api.abort), Reason.ABORT),
        "no finish": (one, ended(good, 0, None), Reason.UNFINISHED),
        "an odd finish": (one, ended(good, 0, api.odd), Reason.UNFINISHED),
        "no finish of the second": (two, ended(double, 1, None), Reason.UNFINISHED),
        "the second is missing": (
            two,
            [e for e in double if place_of(e).get("index") != 1],
            Reason.UNFINISHED,
        ),
        "no index": (two, without(double, 0, "index"), Reason.UNREADABLE),
        **{
            f"the index {index!r}": (two, but(double, 0, index=index), Reason.UNREADABLE)
            for index in indexes
        },
        "text": (one, ["text"], Reason.UNREADABLE),
        "null": (one, [None], Reason.UNREADABLE),
        "an array": (one, [good], Reason.UNREADABLE),
        **{name: (one, events, Reason.UNREADABLE) for name, events in api.bad.items()},
    }


def spoilt_openai(api: Api) -> dict[str, tuple[Body, list[Any], Reason]]:
    """The same, of APIs whose chunks have choices and whose last event has the usage."""
    *said, finish, end = good = api.good
    first = good[0]
    counted, counts = api.streams["counted"]
    unreadable = {
        "behind the finish": [*said, finish, said[-1], end],
        "two finishes": [*said, finish, finish, end],
        "hidden states": but(good, 1, hidden_states=[[1.0]]),
        "hidden states in the end": but(good, -2, hidden_states=[[1.0]]),
        "an unknown member": but(good, 1, surprise=0),
        "sglext": [*said, finish, {**end, "usage": None, "sglext": {"x": 1}}, end],
        "sglext with the usage": [*said, finish, {**end, "sglext": {"x": 1}}],
        "two choices": [{**first, "choices": first["choices"] * 2}, *good[1:]],
        "no choices": [{**first, "choices": []}, *good[1:]],
        "a choice that is none": [{**first, "choices": [None]}, *good[1:]],
        "choices that are none": [{**first, "choices": {"0": {}}}, *good[1:]],
        "no id": [{n: v for n, v in first.items() if n != "id"}, *good[1:]],
        "an id that is none": [{**first, "id": None}, *good[1:]],
    }
    return {
        "no usage": (api.one, good[:-1], Reason.NO_USAGE),
        "no usage, but counts": (counted, counts[:-1], Reason.NO_USAGE),
        **{name: (api.one, events, Reason.UNREADABLE) for name, events in unreadable.items()},
    }


SPOILT = {
    f"{name_of(api)}: {name}": (api, *row)
    for api in ALL
    for rows in (spoilt(api), spoilt_openai(api) if api in OPENAI else {})
    for name, row in rows.items()
}


@each(("api", "body", "events", "reason"), SPOILT.values(), ids=SPOILT)
def test_never_stored(api: Api, body: Body, events: list[Any], reason: Reason) -> None:
    """A stream that is broken, or not understood, is not stored, with its reason."""
    with pytest.raises(Refused) as caught:
        record(api.dialect, body, events)
    assert caught.value.reason is reason


SEVERAL = {
    # streams of several choices, each of which tells its own tokens
    CHAT.dialect.name: (chats.TWO, chats.told(chats.DOUBLE)),
    TEXT.dialect.name: (texts.BATCH, [*texts.told(mixed(texts.FOUR)), texts.usage(6, 8)]),
    NATIVE.dialect.name: (natives.BATCH, mixed(natives.FOUR)),
}


@each("seed", range(8))
@each("api", ALL, ids=name_of)
def test_whatever_comes(api: Api, seed: int) -> None:
    """Whatever upstream sends is recorded or refused, and what is recorded can be replayed."""
    rng = random.Random(seed)
    stored = 0
    streams = [*api.streams.values(), SEVERAL[api.dialect.name]]
    for _ in range(150):
        body, events = rng.choice(streams)
        try:
            samples = record(api.dialect, body, mutated(events, rng))
        except Refused:
            continue
        stored += 1
        for wanted in (body, {**body, **SHOWN}):
            for choice in replay(api.dialect, wanted, samples):
                assert all(isinstance(parsed(event), dict) for event in choice)
    assert stored


@each("seed", range(8))
@each("api", OPENAI, ids=name_of)
def test_whatever_is_stored(api: Api, seed: int) -> None:
    """Whatever is stored as JSON can be streamed."""
    rng = random.Random(seed)
    call = api.dialect.read({**api.one, **SHOWN})
    sent = api.dialect.trim(call, [1], lambda: "minted")
    answers = [record(api.dialect, *stream)[0].answer for stream in api.streams.values()]
    answers += [orjson.dumps(whole) for whole, _ in chats.JSON_ANSWERS.values()] * (api is CHAT)
    for _ in range(200):
        try:
            split = api.dialect.split(call, sent, mutated(orjson.loads(rng.choice(answers)), rng))
        except Refused:
            continue
        script = api.dialect.script(call, [split.generations])
        for event in [*script.deltas[0], *script.finishes]:
            assert isinstance(parsed(event), dict)
        api.dialect.usage(call, [split.generations])
