"""Streams to samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation, Part
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import chat, completions
from sglang_cached_addon.dialects.base import Generating
from sglang_cached_addon.dialects.openai.recording import CHOICE, refuse_unknown
from sglang_cached_addon.wire import sse
from tests.dialects import test_chat_stream as chats
from tests.dialects.streams import mutated, places, told
from tests.dialects.test_completions_stream import stream, usage
from tests.tables import each


@each(
    ("choice", "is_end", "refused"),
    [
        (dict.fromkeys(CHOICE), False, False),
        ({}, False, False), ({"x": None}, True, False), ({"x": None}, False, False),
        ({"x": 1}, False, True), ({"x": False}, False, True), ({"x": 1}, True, False),
        ({"x": "y"}, True, False), ({"x": []}, True, True), ({"x": {}}, True, True),
        ({**dict.fromkeys(CHOICE[1:]), "x": [1]}, False, True),
    ],
)  # fmt: skip
def test_unknown(choice: dict[str, Any], is_end: bool, refused: bool) -> None:
    """A member that no sample has is refused, unless it comes at the end and is no list."""
    if refused:
        with pytest.raises(Refused):
            refuse_unknown(choice, frozenset(CHOICE), is_end=is_end)
    else:
        refuse_unknown(choice, frozenset(CHOICE), is_end=is_end)


def chunk(index: int, tokens: Any = None, rid: str = "", **choice: Any) -> dict[str, Any]:
    told = None if tokens is None else {"completion_tokens": tokens}
    head = {"id": rid or f"id{index}", "object": "chunk", "created": 7}
    return {**head, "choices": [{"index": index, **choice}], "usage": told}


END = {"id": "id9", "object": "chunk", "choices": [], "usage": {"completion_tokens": 5}}


@each(
    ("server", "metadata"),
    [
        (Server(), ...),
        (Server("vllm", "v1"), ...),
        (Server(SGLANG), None),
        (Server(SGLANG, "v1", names_spans=False), {"weight_version": "v1"}),
        (
            Server(SGLANG, "v1"),
            {
                "weight_version": "v1",
                "weight_versions": [{"version": "v1", "start": 0, "end": 5}],
            },
        ),
    ],
)
def test_metadata(server: Server, metadata: Any) -> None:
    """The JSON answer from a stream has the `metadata` that the server itself gives."""
    call = completions.DIALECT.read({"prompt": "a", "stream": True})
    sent = completions.DIALECT.trim(call, [1], lambda: "", server)
    made = completions.DIALECT.record(call, sent)
    for event in [*stream(["a", "b"]), usage(3, 5)]:
        made.add(event)
    (sample,) = made.split().generations
    assert orjson.loads(sample.answer).get("metadata", ...) == metadata


NEWS = {"timings": {"ms": 5}, "citations": ["x"]}


def test_members_of_later_events() -> None:
    """Members that come at the end of a stream are in JSON, and at the end of its replay."""
    call = completions.DIALECT.read({"prompt": "a", "stream": True})
    shown = completions.DIALECT.read(
        {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    )
    for place, is_beside in ((1, False), (2, True)):
        events = [*stream(["a", "b"]), usage(3, 5)]
        for event in events:
            event["system_fingerprint"] = None
        events[place].update(NEWS)
        made = completions.DIALECT.record(call, completions.DIALECT.trim(call, [1], lambda: ""))
        for event in events:
            made.add(event)
        (sample,) = made.split().generations
        found = orjson.loads(sample.answer)
        assert {name: found[name] for name in NEWS} == NEWS
        assert "system_fingerprint" in found
        (deltas,) = completions.DIALECT.script(shown, [[sample]]).deltas
        end = completions.DIALECT.usage(shown, [[sample]])
        assert end
        assert [orjson.loads(sse.data(event) or b"") for event in [*deltas, end]] == events
        # Who does not want the usage gets it with the last words.
        (deltas,) = completions.DIALECT.script(call, [[sample]]).deltas
        said = [orjson.loads(sse.data(event) or b"") for event in deltas]
        assert [{n: e[n] for n in NEWS if n in e} for e in said] == [{}, NEWS]
        assert is_beside is (said[-1] != events[1])


def test_members_of_json() -> None:
    """Members that only JSON has come once in a stream of it."""
    answer = {"id": "up", "object": "text_completion", "created": 7, "model": "m",
              "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": None,
              "prompt_logprobs": None, **NEWS}  # fmt: skip
    call = completions.DIALECT.read({"prompt": "a", "stream": True})
    (deltas,) = completions.DIALECT.script(
        call, [[Generation(0, orjson.dumps(answer), 1, b"[0,1]")], []]
    ).deltas
    assert len(deltas) == 2
    (deltas,) = completions.DIALECT.script(call, [[Generation(0, orjson.dumps(answer), 1)]]).deltas
    (said,) = [orjson.loads(sse.data(event) or b"") for event in deltas]
    assert list(said) == ["id", "object", "created", "model", "choices", "usage", *NEWS]


@each(
    ("counts", "exact"),
    [
        ((2, 3), [2, 3]),
        ((5, 0), [5, 0]),
        ((2, 2), None),
        ((None, 5), None),
        ((None, None), None),
        ((True, 4), None),
        (("2", 3), None),
    ],
)
def test_tokens_of_choices(counts: tuple[Any, Any], exact: list[int] | None) -> None:
    """A choice's usage is what its own stream tells, where that sums up."""
    call = completions.DIALECT.read({"prompt": "a", "n": 2, "stream": True})
    made = completions.DIALECT.record(call, completions.DIALECT.trim(call, [2], lambda: ""))
    for k, count in enumerate(counts):
        made.add(chunk(k, count, text="a", finish_reason="stop"))
    made.add(END)
    split = made.split()
    assert split.refusal is (None if exact else Reason.SHARED_USAGE)
    assert [sample.tokens for sample in split.generations] == exact or not exact


WORDS = [" sea", "a", "b", '\u00e9\n"', "m", "id0", "content", "text", "index", "null", ""]
"""Texts, of which some are elsewhere in a chunk, too, as a name or a value."""


def spoken(dialect: Generating, words: Sequence[str]) -> list[dict[str, Any]]:
    """A stream of these texts."""
    if dialect is completions.DIALECT:
        return [*stream(words), usage(3, len(words))]
    says = [chats.says(word) for word in words]
    return [chats.role(), *says, chats.ends("length"), chats.usage(len(words))]


def recorded(
    dialect: Generating, events: Sequence[bytes], *, n: int = 1, is_quick: bool = True
) -> tuple[list[Any], Any, int]:
    """What each event is, what all come to, and how many were not parsed."""
    call = dialect.read({**(chats.ONE if dialect is chat.DIALECT else ONE), "n": n})
    recorder = dialect.record(call, dialect.trim(call, [n], lambda: "x", Server(SGLANG)))
    parts: list[Any] = []
    count = 0
    for event in events:
        if is_quick and recorder.repeats(event):
            parts.append((Part.DELTA, 0))
            count += 1
            continue
        try:
            parts.append(recorder.add(orjson.loads(event), event if is_quick else b""))
        except (Refused, orjson.JSONDecodeError) as e:
            parts.append(repr(e))
    try:
        return parts, recorder.split(), count
    except Refused as e:
        return parts, e.reason, count


ONE = {"prompt": "a", "stream": True}
OPENAI = (chat.DIALECT, completions.DIALECT)


@each(("dialect", "n", "quick"), [(d, n, q) for d in OPENAI for n, q in ((1, 3), (2, 0))])
def test_texts(dialect: Generating, n: int, quick: int) -> None:
    """A chunk that differs from the one before in its text alone is not parsed, unless it may be of
    another choice."""
    words = ["a", " sea", "\u00e9", "\n", "", "b"]
    *_, count = recorded(dialect, [orjson.dumps(e) for e in spoken(dialect, words)], n=n)
    assert count == quick


SAME: list[dict[str, Any]] = [
    {"finish_reason": "stop"},
    {"logprobs": {"content": [{"token": "a"}]}},
    {"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}},
]
"""Members of a choice that are to be kept of each chunk, also where they are the same in all."""


def spoiled(event: dict[str, Any], rng: random.Random) -> bytes:
    """A chunk's data, written in some way, and perhaps with a byte changed or doubled."""
    data = orjson.dumps(event)
    at = rng.randrange(len(data))
    marks = [b" ", b'"', b",", b":", b"}", b"\\", b"0", b"\xff", b'","content":"', b'","text":"b']
    kind = rng.randrange(12)
    if kind == 0:
        return data[:at] + rng.choice(marks) + data[at:]
    if kind == 1:
        return data[:at] + data[at + 1 :]
    if kind == 2:
        return data.replace(b'":', b'" : ')
    if kind == 3:
        return data.replace(b'"', rng.choice(marks) + b'"', 1 + rng.randrange(9))
    return data


@each("seed", range(8))
@each("dialect", OPENAI)
def test_what_is_not_parsed(dialect: Generating, seed: int) -> None:
    """Whatever comes, a stream is recorded as if each chunk had been parsed."""
    rng = random.Random(seed)
    quick = 0
    for _ in range(120):
        events = spoken(dialect, rng.choices(WORDS, k=12))
        if rng.random() < 0.2:
            events = told(events[:-1]) + events[-1:]
        same, members = rng.choice(SAME), rng.random() < 0.5
        for event in events[1:-2]:
            if members:
                event["choices"][0].update(same)
            elif rng.random() < 0.2:
                event["usage"] = {"completion_tokens": 1}
            if rng.random() < 0.1:
                holder, key = rng.choice(list(places(event)))
                holder[key] = rng.choice(WORDS)
        if rng.random() < 0.5:
            events = mutated(events, rng)
        data = [spoiled(event, rng) for event in events]
        for n in (1, 2):
            *found, count = recorded(dialect, data, n=n)
            assert found == list(recorded(dialect, data, n=n, is_quick=False)[:2])
            quick += count
    assert quick > 20
