"""Events of streams of `/v1/responses`: what their names are, and what in them is of the answer.

Pure. An event is kept as a form: what is known without it, by its place and by the answer, is null
in it, and a delta is the number of its characters.

Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from sglang_cached_addon.dialects.base import Json

TEXTS = {
    "response.output_text": ("content", "text"),
    "response.refusal": ("content", "refusal"),
    "response.reasoning_text": ("content", "text"),
    "response.reasoning_summary_text": ("summary", "text"),
    "response.function_call_arguments": ("", "arguments"),
    "response.custom_tool_call_input": ("", "input"),
}
"""By what the names of their events begin with, the texts that come in deltas: in which list of
their item they stand, if in any, and under which name."""

PARTS = {"response.content_part": "content", "response.reasoning_summary_part": "summary"}
"""By what the names of their events begin with, the parts of items: in which list they stand."""

INDEXES = {"content": "content_index", "summary": "summary_index"}

BEGINNINGS = ("response.created", "response.queued", "response.in_progress")
ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")

NAMES = frozenset(
    (
        *BEGINNINGS,
        *ENDS,
        "response.output_item.added",
        "response.output_item.done",
        "response.output_text.annotation.added",
        *(f"{stem}.{step}" for stem in PARTS for step in ("added", "done")),
        *(f"{stem}.{step}" for stem in TEXTS for step in ("delta", "done")),
    )
)
"""The names of events; the data of each has its name as `type`."""


def known(event: Json, answer: Json, begun: Json) -> Json:
    """What is known of the members of an event: those that are parts of the answer, or of it as it
    has `begun`; a delta is cut from its member `delta`. Raises LookupError or TypeError where there
    is nothing that it could be of."""
    kind: str = event["type"]
    if kind in BEGINNINGS or kind in ENDS:
        return {"response": answer if kind in ENDS else begun}
    item = answer["output"][event["output_index"]]
    stem, _, step = kind.rpartition(".")
    found: Json = {"item_id": item.get("id")}
    if stem in TEXTS:
        place, name = TEXTS[stem]
        holder = _part(item, place, event) if place else item
        return found | {"delta" if step == "delta" else name: holder[name]}
    if step == "done":
        found |= {"part": _part(item, PARTS[stem], event)} if stem in PARTS else {"item": item}
    return found


def _part(item: Json, place: str, event: Json) -> Json:
    found: Json = item[place][event[INDEXES[place]]]
    return found


def place(event: Json) -> str:
    """Where the text stands that an event is about."""
    indexes = [event.get(name) for name in ("output_index", *INDEXES.values())]
    return f"{event['type'].rpartition('.')[0]} {indexes}"


def has_text(event: Json) -> bool:
    """Whether an event ends a text that comes in deltas."""
    stem, _, step = event["type"].rpartition(".")
    return step == "done" and stem in TEXTS
