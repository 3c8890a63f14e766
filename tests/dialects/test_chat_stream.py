"""Streams of `/v1/chat/completions`: recorded, and told again as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.chat import DIALECT
from tests.dialects import streams
from tests.dialects.streams import but, by_choice, mixed, parsed, told, without, worded
from tests.tables import each

ONE = {"messages": [{"role": "user", "content": "a"}], "stream": True}
TWO = {**ONE, "n": 2}


SCORED = {**ONE, "logprobs": True, "top_logprobs": 1}


COUNTED = {**ONE, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


def record(body: dict[str, Any], events: Sequence[Any]) -> Sequence[Generation]:
    return streams.record(DIALECT, body, events)


def replay(body: dict[str, Any], samples: Sequence[Generation]) -> list[list[bytes]]:
    return streams.replay(DIALECT, body, samples)


def usage(completion: int, *, reasoning: int = 0, rid: str = "id0") -> dict[str, Any]:
    """SGLang's last chunk."""
    head = {"id": rid, "object": "chat.completion.chunk", "created": 7, "model": "m"}
    return {**head, "choices": [], "usage": counts(completion, reasoning)}


def counts(completion: int, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": 3,
        "total_tokens": 3 + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None,
        "reasoning_tokens": reasoning,
        "completion_tokens_details": {"reasoning_tokens": reasoning} if reasoning else None,
    }


def own_ids(raw: Sequence[bytes]) -> list[bytes]:
    """A stream of SGLang whose finishes and usage have the ids that ours have: their choice's
    own, and the first one's."""
    ids: dict[int, str] = {}
    found = []
    for event in map(parsed, raw):
        choices = event["choices"]
        index = choices[0]["index"] if choices else 0
        event["id"] = ids.setdefault(index, event["id"])
        found.append(worded(event))
    return found


def chunk(
    delta: dict[str, Any],
    *,
    index: int = 0,
    rows: Any = None,
    finish: Any = None,
    matched: Any = None,
    rid: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A chunk as SGLang's msgspec writes it."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    choice["matched_stop"] = matched
    if rows is not None:
        choice["logprobs"] = {"content": rows}
    head = {"id": rid or f"id{index}", "object": "chat.completion.chunk"}
    return {**head, "created": 7, "model": "m", "choices": [choice], **more}


def role(index: int = 0) -> dict[str, Any]:
    delta = {"reasoning_content": None, "role": "assistant", "content": ""}
    return chunk(delta, index=index)


def says(text: str, **more: Any) -> dict[str, Any]:
    return chunk({"reasoning_content": None, "content": text}, **more)


def thinks(text: str, **more: Any) -> dict[str, Any]:
    return chunk({"reasoning_content": text}, **more)


def scores(*rows: Any, **more: Any) -> dict[str, Any]:
    """Log-probabilities that came with nothing to be said."""
    return chunk({"reasoning_content": None}, rows=list(rows), **more)


def ends(finish: Any = "stop", **more: Any) -> dict[str, Any]:
    return chunk({"reasoning_content": None}, finish=finish, **more)


def passes(text: str, **more: Any) -> dict[str, Any]:
    """Text behind a parser of tool calls, as SGLang's pydantic writes it."""
    delta = {"role": None, "content": text, "reasoning_content": None}
    return chunk(delta, **{"usage": None, **more})


def calls(arguments: str, name: str | None = None, number: int = 0, **more: Any) -> dict[str, Any]:
    """A tool call, or a piece of one."""
    call = {
        "id": f"call_{number}" if name else None,
        "index": number,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    delta = {"role": None, "content": None, "reasoning_content": None, "tool_calls": [call]}
    return chunk(delta, **{"usage": None, **more})


def row(token: str) -> dict[str, Any]:
    said = {"token": token, "bytes": list(token.encode()), "logprob": -0.5}
    return {**said, "top_logprobs": [said]}


A, B, C, D = (row(token) for token in ("a", "𝄞", "\ufffd", ""))


STREAMS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "plain": (ONE, [role(), says("a"), says("b"), ends(), usage(2)]),
    "matched": (ONE, [role(), says("a"), ends(matched=7), usage(2)]),
    "matched text": (ONE, [role(), says("a"), ends(matched="\n"), usage(2)]),
    "empty": (ONE, [role(), ends(), usage(1)]),
    "no tokens": (ONE, [role(), ends("length"), usage(0)]),
    "characters": (ONE, [role(), says("𝄞"), says("ñ\ufffd\u2028\0"), says("𝄞"), ends(), usage(3)]),
    "an empty text": (ONE, [role(), says(""), says("a"), ends(), usage(2)]),
    "reasoning": (
        ONE, [role(), thinks("h"), thinks("m𝄞"), says("a"), ends(), usage(4, reasoning=3)],
    ),
    "reasoning alone": (ONE, [role(), thinks("h"), ends("length"), usage(2, reasoning=2)]),
    "tool calls": (
        ONE,
        [role(), passes("I'll "), passes("add"), calls("", "add"), calls('{"a": '), calls("1}"),
         calls("", "sub", 1), calls("{}", None, 1), ends("tool_calls", matched=2), usage(9)],
    ),
    "a tool call in one piece": (ONE, [role(), calls("{}", "f"), ends("tool_calls"), usage(9)]),
    "thoughts and tool calls": (
        ONE,
        [role(), thinks("h"), passes("a"), calls("{}", "f"), calls('"𝄞"'),
         ends("tool_calls", matched="x"), usage(9, reasoning=1)],
    ),
    "an unfinished tool call": (ONE, [role(), calls('{"a', "f"), ends("length"), usage(9)]),
    "a parser without calls": (ONE, [role(), passes("a"), passes("b"), ends(), usage(2)]),
    "scored": (SCORED, [role(), says("a", rows=[A]), says("𝄞b", rows=[B, C]), ends(), usage(3)]),
    "scored, left over": (
        SCORED,
        [role(), thinks("a", rows=[A]), scores(B, C), calls("{}", "f"), scores(D), says("a"),
         ends("tool_calls", matched=1), usage(4)],
    ),
    "scored, no rows": (
        SCORED, [role(), says("a", rows=[]), says("b", rows=[A]), ends(), usage(1)],
    ),
    "scored, nothing said": (SCORED, [role(), scores(A), ends(), usage(1)]),
    "counted": (
        COUNTED,
        [role(), says("a", usage=counts(1)), says("bc", usage=counts(4)), ends(), usage(5)],
    ),
    "counted, thoughts and tool calls": (
        COUNTED,
        [role(), thinks("a", usage=counts(2, 2)), passes("b", usage=counts(4, 3)),
         calls("{}", "f", usage=counts(5, 3)), ends("tool_calls", matched=1),
         usage(5, reasoning=3)],
    ),
    "counted and scored": (
        {**SCORED, **COUNTED},
        [role(), says("a", rows=[A], usage=counts(1)), scores(B, usage=counts(2)), ends(),
         usage(2)],
    ),
}  # fmt: skip


def answer(message: dict[str, Any], **choice: Any) -> dict[str, Any]:
    """A JSON answer of SGLang's."""
    return {
        "id": "id0",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "", "reasoning_content": None}
                | message,
                "logprobs": None,
                "finish_reason": "stop",
                "matched_stop": None,
                **choice,
            }
        ],
        "usage": counts(4, 1 if "reasoning_content" in message else 0),
        "metadata": {"weight_version": "default"},
    }


CALLS = [
    {"id": f"call_{k}", "index": k, "type": "function",
     "function": {"name": f"f{k}", "arguments": '{"x":"𝄞"}'}}
    for k in range(2)
]  # fmt: skip


ROWS = {"content": [A, B, C, D]}


JSON_ANSWERS: dict[str, tuple[dict[str, Any], int]] = {
    "empty": (answer({}), 0),
    "text": (answer({"content": "a𝄞"}), 1),
    "thoughts": (answer({"reasoning_content": "h"}), 1),
    "thoughts and text": (answer({"content": "a", "reasoning_content": "h"}), 2),
    "matched": (answer({"content": "a"}, matched_stop="x"), 1),
    "tool calls": (answer({"tool_calls": CALLS}, finish_reason="tool_calls"), 2),
    "all": (
        answer({"content": "a", "reasoning_content": "h", "tool_calls": CALLS}, logprobs=ROWS), 4,
    ),
    "scored": (answer({"content": "a"}, logprobs=ROWS), 1),
    "scored thoughts": (answer({"reasoning_content": "h", "content": "a"}, logprobs=ROWS), 2),
    "scored, nothing said": (answer({}, logprobs=ROWS), 1),
}  # fmt: skip


def choice_of(index: int, *texts: str) -> list[dict[str, Any]]:
    return [role(index), *(says(text, index=index) for text in texts)]


@each("seed", range(10))
def test_two_choices(seed: int) -> None:
    """Two choices that come mixed are told apart, each with its own id and tokens."""
    deltas = mixed([choice_of(0, "a", "𝄞", "b"), choice_of(1, "x")], seed)
    last = deltas[-1]["id"]
    finishes = [ends(index=1, rid=last), ends("length", index=0, rid=last)]
    events = [*deltas, *finishes, usage(4, rid=last)]
    samples = record(TWO, told(events))
    assert [orjson.loads(sample.answer)["id"] for sample in samples] == ["id0", "id1"]
    assert [sample.tokens for sample in samples] == [3, 1]
    with pytest.raises(Refused) as caught:
        record(TWO, events)
    assert caught.value.reason is Reason.SHARED_USAGE
    raw = [worded(event) for event in events]
    raw[-1] = worded(usage(4))
    assert replay(TWO, samples) == by_choice(own_ids(raw))


ERROR = {"error": {"object": "error", "message": "no", "type": "InternalServerError", "code": 500}}
GOOD = [role(), says("a"), says("b"), ends(), usage(2)]
DOUBLE = [role(0), role(1), says("a"), says("b", index=1), ends(), ends(index=1), usage(2)]


def with_delta(place: int, **members: Any) -> list[dict[str, Any]]:
    """The good stream with other members in one chunk's delta."""
    delta = GOOD[place]["choices"][0]["delta"]
    return but(GOOD, place, delta={**delta, **members})


def calling(call: Any) -> list[dict[str, Any]]:
    return with_delta(1, tool_calls=call)


FUNCTION = {"name": "f", "arguments": "{}"}
LOST: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "lost rows": (SCORED, [role(), says("a", rows=[A]), ends(), usage(2)]),
    "no rows": (SCORED, GOOD),
    "rows of the first alone": (
        {**SCORED, "n": 2},
        [role(0), role(1), says("a", rows=[A]), says("b", index=1), ends(), ends(index=1),
         usage(2)],
    ),
}  # fmt: skip


@each(("body", "events"), LOST.values(), ids=LOST)
def test_lost_logprobs(body: dict[str, Any], events: list[Any]) -> None:
    """A stream without the log-probabilities of all tokens is not stored."""
    with pytest.raises(Refused) as caught:
        record(body, events)
    assert caught.value.reason is Reason.LOST_LOGPROBS


BAD: dict[str, Any] = {
    # streams of `ONE` that are not understood
    "hidden states behind the finish": [
        *GOOD[:4], chunk({"role": None, "hidden_states": [1.0]}, usage=None), GOOD[4],
    ],
    "hidden states before the finish": with_delta(1, hidden_states=[1.0]),
    "hidden states in the finish": with_delta(3, hidden_states=[1.0]),
    "an unknown delta": with_delta(1, audio="x"),
    "an unknown delta that is false": with_delta(1, audio=False),
    "a message": but(GOOD, 1, message={"content": "x"}),
    "a message at the end": but(GOOD, 3, message={"content": "x"}),
    "no delta": without(GOOD, 1, "delta"),
    "a delta that is none": but(GOOD, 1, delta="x"),
    "content that is none": with_delta(1, content=["x"]),
    "content that is empty, but none": with_delta(1, content=[]),
    "thoughts that are none": with_delta(1, reasoning_content=1),
    "a role that is none": with_delta(1, role=1),
    "rows that are none": but(GOOD, 1, logprobs={"content": None}),
    "scores that are none": but(GOOD, 1, logprobs=[]),
    "scores of completions": but(GOOD, 1, logprobs={"tokens": ["a"]}),
    "calls that are none": calling("x"),
    "a call that is none": calling(["x"]),
    "a call without a place": calling([{"id": "x", "function": FUNCTION}]),
    "a call of nothing": calling([{"index": 0, "function": None}]),
    "a call of another kind": calling([{"index": 0, "type": "custom", "function": FUNCTION}]),
    "arguments that are no text": calling(
        [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}]
    ),
}  # fmt: skip
