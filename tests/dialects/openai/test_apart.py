"""Streams that are kept as they came."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cached_addon.core.call import Generation, Part
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import VLLM
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import chat, completions
from sglang_cached_addon.dialects.base import Generating
from sglang_cached_addon.dialects.openai.apart import is_apart
from sglang_cached_addon.wire import sse
from tests.servers.stand_in import NAMES, recorded
from tests.tables import each

APART = Server(streams_apart=True)
DIALECTS: dict[str, Generating] = {"chat": chat.DIALECT, "completions": completions.DIALECT}


def lines(text: str) -> list[bytes]:
    """The data of each event of a recorded stream, but for the last."""
    return [line[6:].encode() for line in text.split("\n\n") if line.startswith("data: {")]


def record(
    dialect: Generating, body: Any, events: list[bytes], server: Server = APART
) -> tuple[Any, list[Part], Any]:
    """The call, what each event is, and what the stream comes to."""
    read = dialect.read(body)
    sent = dialect.trim(read, [read.n] * len(read.items), lambda: "x" * 32, server)
    recorder = dialect.record(read, sent)
    parts = [recorder.add(json.loads(said), said)[0] for said in events]
    return read, parts, recorder.split()


STREAMS = [
    (name, kind, exchange)
    for name in NAMES
    for kind, exchange in recorded(name).items()
    if "stream" in kind and exchange["response"]["status"] == 200
]


@each(("name", "kind", "exchange"), STREAMS, ids=[row[:2] for row in STREAMS])
def test_recorded_streams(name: str, kind: str, exchange: dict[str, Any]) -> None:
    """What real servers stream is taken apart, and put together to the same bytes, choice by
    choice."""
    dialect = DIALECTS[kind.partition("-")[0]]
    body, said = exchange["request"]["body"], lines(exchange["response"]["body"])
    call, parts, split = record(dialect, body, said)
    assert is_apart([split.generations])
    script = dialect.script(call, [split.generations])
    for index, events in enumerate(script.deltas):
        mine = [one for one in said if json.loads(one)["choices"]
                and json.loads(one)["choices"][0]["index"] == index]  # fmt: skip
        assert [sse.data(event) for event in events] == mine
    usage = dialect.usage(call, [split.generations])
    has_total = Part.USAGE in parts
    assert has_total is (usage is not None and not split.refusal) or split.refusal
    if usage and not split.refusal:
        assert json.loads(sse.data(usage) or b"") == json.loads(said[-1])


def chunk(text: str, finish: Any = None, index: int = 0, **members: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"id": "a", "created": 1, "choices": [choice], **members}).encode()


BODY = {"messages": [{"role": "user", "content": "a"}], "stream": True}


def texts(split: Any) -> list[str]:
    return [json.loads(g.answer)["choices"][0]["message"]["content"] for g in split.generations]


def test_what_people_see() -> None:
    """A sample can be read: its text, its thoughts, its tool calls, and how it has ended."""
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "reasoning": "hm"}, {"content": "yes"}, {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}, "odd"]},
    ]  # fmt: skip
    events = [json.dumps({"id": "a", "choices": [{"index": 0, "delta": delta}]}).encode()
              for delta in deltas]  # fmt: skip
    _, _, split = record(chat.DIALECT, BODY, [*events, chunk("", "tool_calls")])
    (generation,) = split.generations
    assert json.loads(generation.answer)["choices"] == [{
        "index": 0, "finish_reason": "tool_calls",
        "message": {"role": "assistant", "content": "yes", "reasoning_content": "hm",
                    "tool_calls": [{"type": "function",
                                    "function": {"name": "f", "arguments": "{}"}}]},
    }]  # fmt: skip
    assert generation.tokens == 2


@each(
    ("events", "reason"),
    [
        ([chunk("a")], Reason.UNFINISHED),
        ([chunk("a", "")], Reason.UNFINISHED),
        ([chunk("a", 7)], Reason.UNFINISHED),
        ([chunk("a"), b'{"error": "no"}'], Reason.ERROR),
        ([chunk("a", "stop", index=1)], Reason.UNREADABLE),
        ([b"[]"], Reason.UNREADABLE),
        ([b'{"choices": [{}, {}]}'], Reason.UNREADABLE),
    ],
)
def test_refused(events: list[bytes], reason: Reason) -> None:
    """What is not a whole stream, or not understood, is no sample."""
    with pytest.raises(Refused) as refused:
        record(chat.DIALECT, BODY, events)
    assert refused.value.reason is reason


def test_an_abort() -> None:
    """An aborted sample is told as one."""
    _, _, split = record(chat.DIALECT, BODY, [chunk("a", "abort")])
    assert split.refusal is Reason.ABORT


def test_events_of_no_choice() -> None:
    """An event that is of no choice is kept with the only one; of several choices, nobody knows
    whose it is."""
    events = [b'{"choices":[],"prompt_filter_results":[]}', chunk("a", "stop")]
    call, _, split = record(chat.DIALECT, BODY, events)
    script = chat.DIALECT.script(call, [split.generations])
    assert [sse.data(event) for event in script.deltas[0]] == events
    with pytest.raises(Refused):
        record(chat.DIALECT, {**BODY, "n": 2}, events)


def test_samples_of_several_streams() -> None:
    """Samples that have come one by one are choices of one answer: with its id and its time."""
    streams = [[chunk("a", "stop")], [chunk("b", "stop", id="b", created=2)]]
    generations: list[Generation] = []
    for events in streams:
        generations += record(chat.DIALECT, BODY, events)[2].generations
    call = chat.DIALECT.read({**BODY, "n": 2})
    first, second = chat.DIALECT.script(call, [generations]).deltas
    assert json.loads(sse.data(first[0]) or b"") == json.loads(streams[0][0])
    assert json.loads(sse.data(second[0]) or b"") == json.loads(chunk("b", "stop", index=1))


def test_usage_of_several() -> None:
    """The usage of an answer is that of its samples, where the stream told each one's own; what
    only the proxy has asked for is not kept."""
    options = {"stream_options": {"include_usage": True}}
    body = {**BODY, **options, "n": 2}
    counted = [
        chunk(text, "stop", index, usage={"prompt_tokens": 3, "completion_tokens": index + 1})
        for index, text in enumerate("ab")
    ]
    total = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3,"total_tokens":6}}'
    server = Server(VLLM, streams_apart=True)
    call, _, split = record(chat.DIALECT, body, [*counted, total], server)
    assert split.refusal is None and [g.tokens for g in split.generations] == [1, 2]
    assert all(b"usage" not in event
               for said in chat.DIALECT.script(call, [split.generations]).deltas
               for event in said)  # fmt: skip
    usage = chat.DIALECT.usage(call, [[split.generations[1], split.generations[1]]])
    assert json.loads(sse.data(usage or b"") or b"")["usage"]["completion_tokens"] == 4
    _, _, split = record(chat.DIALECT, body, [chunk("a", "stop"), chunk("b", "stop", 1), total])
    assert split.refusal is Reason.SHARED_USAGE
