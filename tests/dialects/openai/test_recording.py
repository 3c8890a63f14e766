"""Streams to samples."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.identity import SGLANG, Server
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import completions
from sglang_cached_addon.dialects.openai.recording import CHOICE, refuse_unknown
from sglang_cached_addon.wire import sse
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
