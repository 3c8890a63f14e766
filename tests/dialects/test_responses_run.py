"""Deltas of `/v1/responses` that differ in their text alone."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.dialects.responses_run import Run
from tests.tables import each

Json = dict[str, Any]


def delta(text: str, number: int = 4, **more: Any) -> Json:
    """As SGLang sends it."""
    head = {"content_index": 0, "delta": text, "item_id": "msg_1", "logprobs": []}
    last = {"output_index": 0, "sequence_number": number, "type": "response.output_text.delta"}
    return {**head, **last, **more}


def in_other_order(text: str, number: int = 4, **more: Any) -> Json:
    """As SGLang sends it for gpt-oss."""
    return {"type": "x.delta", "sequence_number": number, "item_id": "a", "delta": text, **more}


@each("make", [delta, in_other_order])
def test_what_repeats(make: Any) -> None:
    """What has the next number and another text is taken, without being parsed; and parsed it comes
    to the same."""
    texts = ["a", '"delta":"b"', ' "sequence_number":4,', "\u00e9\n", "a"]
    said = [orjson.dumps(make(text, 7 + k)) for k, text in enumerate(texts)]
    for first in range(2):
        run = Run(make(texts[first], 7 + first), said[first])
        assert all(run.repeats(each) for each in said[first + 1 :])
        assert run.texts == texts[first:]
    parsed = Run(make("a", 7))
    assert not parsed.repeats(said[1])
    assert all(parsed.adds(orjson.loads(each)) for each in said[1:])
    assert parsed.texts == texts


@each("make", [delta, in_other_order])
def test_what_does_not(make: Any) -> None:
    """Another number, another member, another place: that is no repetition."""
    odd = [make("b", 4), make("b", 6), make("b", 5, x=1), make("b", 5, item_id="b"),
           make("b", None), make("b", True), {**make("b", 5), "type": "x"}, {"delta": "b"},
           dict(reversed(make("b", 5).items()))]  # fmt: skip
    for event in odd:
        run = Run(make("a"), orjson.dumps(make("a")))
        assert not run.repeats(orjson.dumps(event))
        assert not run.adds(event)
        assert run.texts == ["a"]
    run = Run(make("a"), orjson.dumps(make("a")))
    for raw in (b" " + orjson.dumps(make("b", 5)), orjson.dumps(make("", 5)), b""):
        assert not run.repeats(raw)


def test_without_numbers() -> None:
    """Deltas without a number are parsed, and may repeat."""
    first = {n: v for n, v in delta("a").items() if n != "sequence_number"}
    run = Run(first, orjson.dumps(first))
    assert not run.repeats(orjson.dumps({**first, "delta": "b"}))
    assert run.adds({**first, "delta": "b"})
    assert not run.adds({**first, "delta": "b", "sequence_number": 4})
    assert run.texts == ["a", "b"]


def test_ambiguous() -> None:
    """Where a member looks like the text, or like the number, what comes is parsed."""
    for more in ({"x": {"delta": "a"}}, {"x": {"sequence_number": 4, "y": 1}}):
        first = delta("a", **more)
        run = Run(first, orjson.dumps(first))
        following = {**first, "delta": "b", "sequence_number": 5}
        assert not run.repeats(orjson.dumps(following))
        assert run.adds(following)
