"""Streams of `/v1/responses`: samples to events.

`responses_stream` has the form of a sample's `deltas`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import orjson

from sglang_cached_addon.core.call import Recorded, Script
from sglang_cached_addon.dialects import (
    judging,
    responses_answer,
    responses_events,
    responses_forms,
)
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.wire import sse


def script(sample: Recorded, body: Json) -> Script:
    """The events of a sample, as the answer to a call with this body."""
    answer: Json = orjson.loads(sample.answer)
    kept: list[Any] | None = orjson.loads(sample.deltas) if sample.deltas else None
    is_own = not kept or isinstance(kept[0], list)
    forms = responses_forms.forms(answer, kept) if is_own else kept
    *events, end = map(_event, _told(forms or (), answer, body))
    return Script((events,), [], end)


def _event(value: Json) -> bytes:
    return sse.event(judging.dump(value), value["type"].encode())


def _told(forms: Iterable[Any], answer: Json, body: Json) -> Iterator[Json]:
    """The events that have these forms."""
    begun, numbers = responses_answer.begun(answer, body), count()
    form: Json = {}
    come: Counter[str] = Counter()  # by the places of texts, how much of each has come
    for next_form in forms:
        form = next_form if isinstance(next_form, dict) else {**form, "delta": next_form}
        known = responses_events.known(form, answer, begun)
        known["sequence_number"] = next(numbers)
        event = {n: known[n] if v is None and n in known else v for n, v in form.items()}
        if "delta" in known:
            place, size = responses_events.place(form), form["delta"]
            event["delta"] = known["delta"][come[place] : come[place] + size]
            come[place] += size
        if "response" in event:
            event["response"] = responses_answer.own(event["response"], body)
        yield event
