"""Streams on their way: topped up from the store, and shown to each client as it wants them."""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core import planning
from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.call import Part
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import chat, completions, generate
from sglang_cached_addon.dialects.base import Generating
from sglang_cached_addon.service.relay import Event, Relay, View
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.wire import sse
from tests.dialects import test_chat_stream as chats
from tests.dialects import test_completions_stream as texts
from tests.dialects import test_generate_stream as natives
from tests.dialects.streams import mutated, parsed, worded
from tests.tables import each

Events = list[dict[str, Any]]


class ToppedUp:
    """A call that is topped up: `stored` holds streams of one choice each, by prompt."""

    def __init__(
        self,
        dialect: Generating,
        body: dict[str, Any],
        stored: dict[str, list[Events]] | None = None,
    ) -> None:
        self.dialect = dialect
        self.call = dialect.read(body)
        store = MemoryStore()
        field = "text" if dialect is generate.DIALECT else "prompt"
        for prompt, streams in (stored or {}).items():
            alone = {name: v for name, v in body.items() if name not in ("n", "rid")}
            if dialect is not chat.DIALECT:
                alone[field] = prompt
            alone["sampling_params"] = {}
            call = dialect.read(alone)
            for events in streams:
                recorder = dialect.record(call, dialect.trim(call, [1], lambda: "x"))
                for event in events:
                    recorder.add(copy.deepcopy(event))
                (made,) = recorder.split().generations
                sample = Sample(made.answer, 1.0, 1.0, made.tokens, made.deltas)
                store.append(Addition(self._key(dialect.read(alone).items[0]), "", b"", [sample]))
        keys = tuple(self._key(item) for item in self.call.items)
        self.plan = planning.plan(self.call, keys, store)
        numbers = itertools.count()
        self.sent = dialect.trim(self.call, self.plan.shortfalls, lambda: f"minted{next(numbers)}")
        self.relay = Relay(dialect, self.plan, self.sent)

    def _key(self, item: bytes) -> bytes:
        """Of a prompt: `sampling_params` only tell how many."""
        members = orjson.loads(item)
        members.pop("sampling_params", None)
        return orjson.dumps(members)

    def feed(self, events: Sequence[Any]) -> list[Event]:
        return self.relay.feed(b"".join(worded(event) for event in events))


def choices(events: Sequence[Event]) -> list[Any]:
    """Which choice each event is of; None where it is of none."""
    found = []
    for event in events:
        value = parsed(event.data)
        if isinstance(value.get("choices"), list):
            found.append(value["choices"][0]["index"] if value["choices"] else None)
        else:
            found.append(value.get("index"))
    return found


CHAT = chats.ONE
STORED = {"": [[chats.role(), chats.says("stored"), chats.ends("length"), chats.usage(5)]]}
NEW = [
    *chats.choice_of(0, "new"),
    *chats.choice_of(1, "newer", "yet"),
    chats.ends(index=1, rid="id0"),
    chats.ends(rid="id0"),
    chats.usage(4),
]


def without(events: Events, index: int) -> Events:
    return [e for e in events if not e["choices"] or e["choices"][0]["index"] != index]


PASSING: dict[str, tuple[Generating, dict[str, Any], list[Any]]] = {
    "chat": (chat.DIALECT, {**CHAT, "n": 2}, NEW),
    "completions": (completions.DIALECT, texts.BATCH, [*texts.mixed(texts.FOUR, 1), texts.END]),
    "generate": (generate.DIALECT, natives.BATCH, natives.mixed(natives.FOUR, 1)),
    "an error": (chat.DIALECT, CHAT, [chats.ERROR]),
    "odd events": (chat.DIALECT, CHAT, [None, 1, [], {}, "x", *NEW]),
}


@each(("dialect", "body", "events"), PASSING.values(), ids=PASSING)
def test_nothing_stored(dialect: Generating, body: dict[str, Any], events: list[Any]) -> None:
    """A client whose answer is upstream's alone gets upstream's bytes, however these were cut."""
    data = b": ping\n\n" + b"".join(worded(event) for event in events) + sse.DONE + b"data: be"
    case = ToppedUp(dialect, body)
    found = case.relay.feed(data)
    assert b"".join(event.data for event in found) + b"data: be" == data
    assert case.relay.is_done
    single = ToppedUp(dialect, body)
    pieces = [single.relay.feed(data[i : i + 1]) for i in range(len(data))]
    assert [event for piece in pieces for event in piece] == found
    assert single.relay.reason == case.relay.reason


def test_a_stream_that_does_not_end() -> None:
    """A stream of any length is passed on, and what is too long is not stored."""
    case = ToppedUp(chat.DIALECT, CHAT)
    size = sum(len(worded(event)) for event in NEW)
    relay = Relay(chat.DIALECT, case.plan, case.sent, longest=3 * size)
    data = b"".join(worded(event) for event in NEW)
    given = [event for _ in range(10) for event in relay.feed(data)]
    given += relay.feed(sse.DONE)
    assert b"".join(event.data for event in given) == data * 10 + sse.DONE
    assert relay.is_done
    with pytest.raises(Refused) as refused:
        relay.split()
    assert refused.value.reason is not None
    short = Relay(chat.DIALECT, case.plan, case.sent, longest=size)
    short.feed(data + sse.DONE)
    assert short.reason is Reason.TOO_LARGE


def test_an_event_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that does not end is passed on in pieces, and not kept."""
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    case = ToppedUp(chat.DIALECT, CHAT)
    piece = b"data: " + b"x" * 500
    given = [event for _ in range(9) for event in case.relay.feed(piece)]
    assert b"".join(event.data for event in given) == piece * 9
    assert {event.part for event in given} == {Part.OTHER}
    assert case.relay.is_in_pieces
    found = case.relay.feed(b"\n\n" + sse.DONE)
    assert b"".join(event.data for event in found) == b"\n\n" + sse.DONE
    assert case.relay.is_done
    with pytest.raises(Refused) as refused:
        case.relay.split()
    assert refused.value.reason is Reason.UNREADABLE


def test_topped_up() -> None:
    """Stored choices come first, and end with those of upstream, each under its own number."""
    case = ToppedUp(chat.DIALECT, {**CHAT, "n": 3}, STORED)
    assert (case.sent.n, case.plan.have) == (2, 1)
    found = case.feed(NEW)
    assert choices(found) == [0, 0, 1, 1, 2, 2, 2, 0, 2, 1, None]
    assert [event.part for event in found] == [*[Part.DELTA] * 7, *[Part.FINISH] * 3, Part.USAGE]
    assert found[2].choice == 1
    values = [parsed(event.data) for event in found]
    finishes = [value["choices"][0]["finish_reason"] for value in values[:-1]]
    assert finishes == [*[None] * 7, "length", "stop", "stop"]
    assert {value["created"] for value in values} == {7}
    # Upstream's choices keep their ids, their finishes too.
    assert [value["id"] for value in values[2:7]] == ["id0", "id0", "id1", "id1", "id1"]
    assert [value["id"] for value in values[8:10]] == ["id1", "id0"]
    assert values[-1]["usage"] == chats.counts(9)
    assert not case.relay.is_done
    assert case.relay.feed(sse.DONE) == [Event(sse.DONE, Part.OTHER)]
    assert case.relay.is_done
    split = case.relay.split()
    assert [sample.tokens for sample in split.generations] == [1, 3]
    assert [orjson.loads(sample.answer)["id"] for sample in split.generations] == ["id0", "id1"]


def test_stored_choices_come_at_once() -> None:
    """A client does not wait for upstream to get what is stored."""
    case = ToppedUp(chat.DIALECT, {**CHAT, "n": 3}, STORED)
    assert choices(case.relay.feed(b"")) == [0, 0]
    assert case.relay.feed(b"") == []
    (event,) = case.feed(NEW[:1])
    assert event.data == worded(chats.role(1)).replace(b"id1", b"id0")


WHOLE = texts.BATCH | {"prompt": ["a", "b", "a"]}
FIRST = [*texts.stream(["a0"]), texts.usage(3, 1)]
SECOND = [*texts.stream(["b", "0"]), texts.usage(5, 2)]
THIRD = [*texts.stream(["b1"]), texts.usage(5, 4)]


def test_ragged_batch() -> None:
    """Each prompt gets its own words, and its tokens are counted once."""
    case = ToppedUp(completions.DIALECT, WHOLE, {"a": [FIRST], "b": [SECOND, THIRD]})
    assert case.plan.shortfalls == (1, 0, 2)
    assert case.sent.order == (0, 2, 2)
    fetched = [texts.stream([f"x{k}"], index=k, counts=[8 << k]) for k in range(3)]
    found = case.feed([*texts.mixed(fetched, 3), texts.usage(9, 56)])
    by_choice: dict[Any, str] = {}
    for index, event in zip(choices(found), found, strict=True):
        said = parsed(event.data)["choices"]
        by_choice[index] = by_choice.get(index, "") + (said[0]["text"] if said else "")
    assert by_choice == {0: "a0", 2: "b0", 3: "b1", 1: "x0", 4: "x1", 5: "x2", None: ""}
    usage = parsed(found[-1].data)["usage"]
    assert usage == {
        "prompt_tokens": 3 + 5 + 3, "total_tokens": 11 + 63, "completion_tokens": 63,
        "reasoning_tokens": 0,
    }  # fmt: skip
    assert [sample.item for sample in case.relay.split().generations] == [0, 2, 2]


def test_generate_is_topped_up() -> None:
    """A lone sample has no index, and is one of many for the client."""
    stored = {"a": [natives.stream([("s", 1), ("st", 2)])]}
    case = ToppedUp(generate.DIALECT, natives.TWO, stored)
    assert (case.sent.n, case.plan.have) == (1, 1)
    found = case.feed(natives.stream(natives.PLAIN))
    assert [parsed(event.data)["index"] for event in found] == [0, 0, 1, 1, 1]
    assert [event.part for event in found] == [Part.DELTA] * 2 + [Part.STATE] * 3
    assert [event.choice for event in found[2:]] == [1, 1, 1]
    last = natives.stream(natives.PLAIN)[-1]
    assert found[-1].data == worded({**last, "index": 1})
    (sample,) = case.relay.split().generations
    assert "index" not in orjson.loads(sample.answer)
    assert case.relay.feed(sse.DONE)[-1].data == sse.DONE


UPSTREAMS: dict[str, tuple[Callable[[], ToppedUp], list[Any]]] = {
    "chat": (lambda: ToppedUp(chat.DIALECT, {**CHAT, "n": 3}, STORED), NEW),
    "completions": (
        lambda: ToppedUp(completions.DIALECT, texts.TWO, {"a": [FIRST]}),
        [*texts.stream(["a", "𝄞"]), texts.usage(3, 2)],
    ),
    "generate": (
        lambda: ToppedUp(generate.DIALECT, natives.TWO, {"a": [natives.stream([("s", 1)])]}),
        natives.stream(natives.PLAIN),
    ),
}


@each(("make", "events"), UPSTREAMS.values(), ids=UPSTREAMS)
def test_byte_by_byte(make: Callable[[], ToppedUp], events: list[Any]) -> None:
    """What a client gets does not depend on how TCP has cut it."""
    data = b"".join(worded(event) for event in events) + sse.DONE
    case = make()
    found = case.relay.feed(data)
    again = make()
    pieces = [again.relay.feed(data[i : i + 1]) for i in range(len(data))]
    assert [event for piece in pieces for event in piece] == found
    assert again.relay.split() == case.relay.split()


@each("end", range(1, 12))
def test_what_remains(end: int) -> None:
    """What upstream said before it hung up reaches the client, once."""
    case = ToppedUp(completions.DIALECT, texts.ONE)
    assert case.relay.remains() == []
    data = sse.event(b"1")
    found = case.relay.feed(data * 2 + data[:end])
    rest = case.relay.remains()
    assert b"".join(event.data for event in [*found, *rest]) == data * 2 + data[:end]
    assert [event.part for event in rest] == ([] if end >= len(data) else [Part.OTHER])


ODD: dict[str, tuple[bytes, bool]] = {
    "a comment": (b": ping\n\n", True),
    "an id": (b"id: 7\n\n", True),
    "a name of its own": (b"event: sglext_ids\ndata: {}\n\n", False),
    "an error by name": (b'event: error\ndata: {"error":"x"}\n\n', False),
    "HTML": (b"<html>\n\n", False),
    "no JSON": (b"data: {\n\n", False),
    "no text": (b"data: \xff\n\n", False),
    "nothing": (b"data: \n\n", False),
    "null": (b"data: null\n\n", False),
    "an empty object": (b"data: {}\n\n", False),
    "no choices": (b'data: {"id":"x","choices":[]}\n\n', False),
    "too deep": (b"data: " + b"[" * 2000 + b"]" * 2000 + b"\n\n", False),
    "too high": (
        b'data: {"id":"x","choices":[{"index":9,"delta":{}}]}\n\n', False,
    ),
    "too deep in a choice": (
        b'data: {"id":"id0","choices":[{"index":0,"delta":{},"logprobs":{"content":'
        + b"[" * 500 + b"]" * 500 + b"}}]}\n\n",
        False,
    ),
}  # fmt: skip


@each(("odd", "harmless"), ODD.values(), ids=ODD)
@each("place", range(len(NEW) + 1))
def test_odd_events(place: int, odd: bytes, harmless: bool) -> None:
    """An odd event is passed on, and what it breaks is not stored."""
    case, plain = (ToppedUp(chat.DIALECT, {**CHAT, "n": 3}, STORED) for _ in range(2))
    before = case.feed(NEW[:place])
    (passed,) = case.relay.feed(odd)
    assert passed.data == odd
    behind = case.feed(NEW[place:])
    if harmless:
        assert case.relay.split()
    else:
        with pytest.raises(Refused) as caught:
            case.relay.split()
        assert caught.value.reason is Reason.UNREADABLE
    # The client's stream goes on in the right numbers.
    found, wanted = [*before, *behind], plain.feed(NEW)
    assert choices(found) == choices(wanted)
    assert [event.part for event in found] == [event.part for event in wanted]
    assert found[:-1] == wanted[:-1]


@each("surprise", [{"x": 1}, {"hidden_states": [1.0]}, {"logprobs": []}, {"matched_stop": None}])
def test_unknown_member(surprise: dict[str, Any]) -> None:
    """What is not understood, and so not stored, is an answer nevertheless: in the right place."""
    case = ToppedUp(chat.DIALECT, {**CHAT, "n": 2}, STORED)
    events = copy.deepcopy(without(NEW, 1))
    events[1]["choices"][0].update(surprise)
    found = case.feed(events)
    assert choices(found) == [0, 0, 1, 1, 0, 1, None]
    said = parsed(found[3].data)["choices"][0]
    assert {name: said[name] for name in surprise} == surprise
    plain = case.relay.reason is None
    assert plain is (surprise == {"matched_stop": None})


@each("place", range(4))
def test_errors_pass(place: int) -> None:
    """A client sees why its answer ends."""
    case = ToppedUp(chat.DIALECT, {**CHAT, "n": 3}, STORED)
    found = [*case.feed(NEW[:place]), *case.feed([chats.ERROR]), *case.relay.feed(sse.DONE)]
    (error,) = [event for event in found if event.part is Part.ERROR]
    assert error.data == worded(chats.ERROR)
    assert found[-1] == Event(sse.DONE, Part.OTHER)
    assert choices(found[-2:-1]) == [0]
    assert found[-2].part is Part.FINISH
    with pytest.raises(Refused) as caught:
        case.relay.split()
    assert caught.value.reason is Reason.ERROR


SCORED = {**CHAT, "n": 3, "logprobs": True}
UNKEPT = {
    "not whole": (CHAT | {"n": 3}, [*NEW[:3], NEW[-1]]),
    "without the logprobs of a token": (SCORED, NEW),
    "not understood": (CHAT | {"n": 3}, [{"x": 1}, *NEW]),
}


@each(("body", "events"), UNKEPT.values(), ids=UNKEPT)
def test_usage_of_what_is_not_kept(body: dict[str, Any], events: list[Any]) -> None:
    """A client is told the tokens of its whole answer, also where that is not kept."""
    row = {"token": "t", "logprob": -1.0, "bytes": None, "top_logprobs": []}
    rows = [row] * 5 if "logprobs" in body else None
    stored = [chats.role(), chats.says("stored", rows=rows), chats.ends("length"), chats.usage(5)]
    case = ToppedUp(chat.DIALECT, body, {"": [stored]})
    end = case.feed(events)[-1]
    assert end.part is Part.USAGE
    assert parsed(end.data)["usage"] == chats.counts(5 + 4)
    with contextlib.suppress(Refused):
        assert case.relay.split().refusal


@each("seed", range(6))
@each(("make", "events"), UPSTREAMS.values(), ids=UPSTREAMS)
def test_whatever_comes(make: Callable[[], ToppedUp], events: list[Any], seed: int) -> None:
    """An odd upstream ends no stream in a traceback, and what it says is not lost."""
    rng = random.Random(seed)
    bodies = [{"rid": "mine"}, {"stream_options": {"include_usage": True}}]
    for _ in range(40):
        case = make()
        data = bytearray(b"".join(worded(event) for event in mutated(events, rng)) + sse.DONE)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = bytes(rng.choices(b'\n\r:{}[]"0\xff,', k=2))
        found = case.relay.feed(bytes(data))
        with contextlib.suppress(Refused):
            case.relay.split()
        body = dict(case.call.body) | rng.choice(bodies)
        shown = View(case.dialect, case.dialect.read(body)).show(found)
        hidden = sum(event.part is Part.USAGE for event in found)
        assert len(found) - hidden <= len(shown) <= len(found)


@each(
    ("options", "wants"),
    [
        (None, False),
        ({"include_usage": False}, False),
        ({"include_usage": True}, True),
        ({"continuous_usage_stats": True}, False),
    ],
)
@each("rid", [None, "mine"])
def test_usage_is_shown_to_who_wants_it(options: Any, wants: bool, rid: str | None) -> None:
    """SGLang's own benchmark breaks on a chunk of usage that it has not asked for."""
    body = {**texts.ONE, "stream_options": options, "rid": rid}
    case = ToppedUp(completions.DIALECT, body)
    events = [*texts.stream(["a", "b"]), texts.usage(3, 2)]
    found = [*case.feed(events), *case.relay.feed(sse.DONE)]
    shown = View(completions.DIALECT, case.call).show(found)
    if rid:
        for event in events:
            event["id"] = rid
    assert shown == [worded(event) for event in (events if wants else events[:2])] + [sse.DONE]


@each(
    ("dialect", "body", "events", "ids"),
    [
        (chat.DIALECT, CHAT, without(NEW, 1), ["mine"]),
        (chat.DIALECT, CHAT, [*NEW[:1], {**NEW[2], "choices": [{"index": 0, "x": 1}]}], ["mine"]),
        (completions.DIALECT, texts.ONE, texts.GOOD, ["mine"]),
        (
            completions.DIALECT,
            {**texts.ONE, "prompt": ["a", "b"]},
            [*texts.FOUR[0], *texts.FOUR[1], texts.END],
            ["mine_0", "mine_1", "mine_0"],
        ),
        (generate.DIALECT, natives.ONE, natives.GOOD, ["mine"]),
        (
            generate.DIALECT,
            {"text": ["a", "b"], "stream": True},
            [*natives.FOUR[0], *natives.FOUR[1]],
            ["mine_0", "mine_1"],
        ),
    ],
)
def test_client_rids(
    dialect: Generating, body: dict[str, Any], events: list[Any], ids: list[str]
) -> None:
    """A client finds its own ids in each event."""
    case = ToppedUp(dialect, {**body, "rid": "mine", "stream_options": {"include_usage": True}})
    assert case.sent.body["rid"] in ("minted0", ["minted0", "minted1"])
    shown = View(dialect, case.call).show([*case.feed(events), *case.relay.feed(sse.DONE)])
    assert shown.pop() == sse.DONE
    found = [parsed(event) for event in shown]
    told = [value["meta_info"]["id"] if "meta_info" in value else value["id"] for value in found]
    assert [name for name, _ in itertools.groupby(told)] == ids
    for value, event in zip(found, events, strict=True):
        value.get("meta_info", value)["id"] = event.get("meta_info", event)["id"]
        assert value == event


@each("event", [*(data for data, _ in ODD.values()), worded(chats.ERROR)])
def test_view_of_odd_events(event: bytes) -> None:
    """A client with an id of its own sees what has no place for it as it is."""
    case = ToppedUp(chat.DIALECT, {**CHAT, "rid": "mine"})
    (shown,) = View(chat.DIALECT, case.call).show(case.relay.feed(event))
    assert shown == event or parsed(shown)["id"] == "mine"
