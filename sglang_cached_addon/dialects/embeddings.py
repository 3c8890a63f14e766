"""OpenAI's `/v1/embeddings`: one input or a list of them, as texts, token ids, or objects of texts
and pictures.

A sample is the answer to one input, with its vector in base64; answers in JSON numbers and in
base64 are made of it. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    base,
    counted,
    judging,
    listing,
    listing_display,
    reading,
    vectors,
)

# In a list a list in one of these holds a value for each input.
_PER_ROW = ("input", "rid", "lora_path", "embed_overrides")

_FORMS = ("float", "base64")

TRANSPORT: base.TransportTable = {
    "rid": (str, list, base.NULL),
    "user": (str, base.NULL),
    "priority": (int, base.NULL),
}
"""Request identity and scheduling: nothing of it reaches the model."""


class Embeddings(counted.Counted):
    """The dialect of POST `/v1/embeddings`."""

    name = "openai-embedding"
    routes = (("POST", "/v1/embeddings"),)
    transport = TRANSPORT
    display = listing_display.ListDisplay(
        ("input",), listing_display.of_data(listing_display.vector)
    )
    is_verbatim = False

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return ({**({"model": model} if model else {}), "input": "."},)

    def content(self, body: dict[str, Any]) -> dict[str, Any]:
        content = super().content(body)
        if content.get("encoding_format") in _FORMS:
            del content["encoding_format"]
        return content

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        given: Any = body.get("input")
        if _are_objects(given):
            if any(reading.is_elsewhere(value) for each in given for value in _media(each)):
                raise Refused(Reason.MEDIA)
            if len(given) > 1:
                return ()  # nothing tells what tokens each of them has: the list is one item
            return listing.columns_of(body, 1, _PER_ROW)
        return listing.columns_of(body, listing.count_of(given), _PER_ROW)

    def inputs(self, body: dict[str, Any]) -> list[Any]:
        inputs: list[Any] = body["input"]
        return inputs

    def rows(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        rows = counted.in_order(answer.get("data"))
        for row in rows:
            vectors.packed(row)
            if not vectors.is_readable(row.get("embedding")):
                raise Refused(Reason.UNREADABLE)
        return [{"data": [{**row, "index": 0}]} for row in rows]

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        sample = samples[0][0]
        if call.batched or not vectors.is_plain(sample):
            return super().write(call, samples)
        # What is kept is the answer to a lone input, and need not be read for that.
        is_base64 = call.body.get("encoding_format") == "base64"
        return sample if is_base64 else vectors.with_numbers(sample)

    def joined(self, call: Call, answers: Iterable[dict[str, Any]]) -> dict[str, list[bytes]]:
        is_base64 = call.body.get("encoding_format") == "base64"
        rows: list[bytes] = []
        for row in (row for answer in answers for row in counted.in_order(answer["data"])):
            vector = row["embedding"]
            shown = (
                vectors.in_base64(vector) if is_base64 else orjson.Fragment(vectors.in_json(vector))
            )
            rows.append(judging.dump({**row, "embedding": shown, "index": len(rows)}))
        return {"data": rows}


def _are_objects(inputs: Any) -> bool:
    return isinstance(inputs, list) and bool(inputs) and set(map(type, inputs)) == {dict}


def _media(each: dict[str, Any]) -> list[Any]:
    """What an object refers to beside its text."""
    return [value for name, value in each.items() if name != "text"]


DIALECT = Embeddings()
