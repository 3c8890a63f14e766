"""OpenAI's `/v1/classify`: the class of each text, with the probabilities of all.

A sample is the answer to one input. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import base, counted, judging, listing, listing_display
from sglang_cached_addon.dialects.display import written

TRANSPORT: base.TransportTable = {
    "rid": (str, list, base.NULL),
    "user": (str, base.NULL),
    "priority": (int, base.NULL),
}
"""Request identity and scheduling: nothing of it reaches the model."""


def _said(row: dict[str, Any]) -> str:
    """A class, and how likely each of them is."""
    return f"{written(row.get('label'))} ({listing_display.numbers(row.get('probs'))})"


class Classify(counted.Counted):
    """The dialect of POST `/v1/classify`."""

    name = "openai-classify"
    routes = (("POST", "/v1/classify"),)
    transport = TRANSPORT
    display = listing_display.ListDisplay(("input",), listing_display.of_data(_said))

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return ({**({"model": model} if model else {}), "input": "."},)

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        return listing.columns_of(body, listing.count_of(body.get("input")), ("input", "rid"))

    def inputs(self, body: dict[str, Any]) -> list[Any]:
        inputs: list[Any] = body["input"]
        return inputs

    def rows(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"data": [{**row, "index": 0}]} for row in counted.in_order(answer.get("data"))]

    def refusal(self, answer: dict[str, Any]) -> Reason | None:
        # So SGLang answers where it fails, with a 200.
        failed = ("Default", [1.0])
        is_failed = any((row.get("label"), row.get("probs")) == failed for row in answer["data"])
        return Reason.ERROR if is_failed else None

    def joined(self, call: Call, answers: Iterable[dict[str, Any]]) -> dict[str, list[bytes]]:
        rows = (row for answer in answers for row in answer["data"])
        return {"data": [judging.dump({**row, "index": k}) for k, row in enumerate(rows)]}


DIALECT = Classify()
