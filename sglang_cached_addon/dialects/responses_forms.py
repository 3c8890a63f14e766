"""The forms of events of `/v1/responses`, as SGLang sends them: they follow from the answer alone,
but for where its texts are cut into deltas.

Pure. `responses_events` has what a form is. Checked against SGLang 0.5.23, with version 2.8 of
OpenAI's package, which gives the order of members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.responses_events import INDEXES, PARTS, TEXTS

_CALLS = {
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}
"""By type of item, what the names of its text's events begin with."""

_EMPTY: Json = {
    "content": [],
    "summary": [],
    "arguments": "",
    "input": "",
    "encrypted_content": None,
}
"""The members that an item has before anything of it has come."""


def forms(answer: Json, pieces: Iterable[list[int]] | None = None) -> Iterator[Any]:
    """The forms of all events of an answer. `pieces` are the lengths of the deltas of one text
    after the other; without them, each text is one delta. The form of a delta stands once, and then
    the lengths of those that follow."""
    yield _lifecycle("response.created")
    yield _lifecycle("response.in_progress")
    cut = _whole if pieces is None else _cut(iter(pieces))
    for index, item in enumerate(answer["output"]):
        yield from _Item(item, index, cut).forms()
    yield _lifecycle(f"response.{answer['status']}")


def _lifecycle(kind: str) -> Json:
    return {"type": kind, "response": None, "sequence_number": None}


def _whole(text: str) -> list[int]:
    return [len(text)] if text else []


def _cut(pieces: Iterator[list[int]]) -> Callable[[str], list[int]]:
    return lambda text: next(pieces, [])


class _Item:
    """One item of an answer."""

    def __init__(self, item: Json, index: int, cut: Callable[[str], list[int]]) -> None:
        """`cut` gives the lengths of the deltas of the next text."""
        self._item = item
        self._at: Json = {"output_index": index}
        self._cut = cut

    def forms(self) -> Iterator[Any]:
        """The forms of its events."""
        kind = self._item["type"]
        yield self._form("response.output_item.added", item=self._begun())
        if kind in _CALLS:
            named = {"name": self._item.get("name")} if kind == "function_call" else {}
            yield from self._of_text(_CALLS[kind], self._item, {"item_id": None}, {}, named)
        elif kind == "reasoning" and self._item.get("summary"):
            yield from self._of_parts("response.reasoning_summary_part", "reasoning_summary_text")
        elif kind in ("message", "reasoning"):
            name = "output_text" if kind == "message" else "reasoning_text"
            yield from self._of_parts("response.content_part", name)
        yield self._form("response.output_item.done", item=None)

    def _begun(self) -> Json:
        """The item before anything of it has come."""
        early = {"status": "in_progress"} if self._item.get("status") is not None else {}
        return {name: (_EMPTY | early).get(name, value) for name, value in self._item.items()}

    def _form(self, kind: str, **members: Any) -> Json:
        """A form whose members are in alphabetical order, but for its type."""
        found = {**self._at, **members, "sequence_number": None}
        return {**dict(sorted(found.items())), "type": kind}

    def _of_parts(self, outer: str, kind: str) -> Iterator[Any]:
        place = PARTS[outer]
        for number, part in enumerate(self._item.get(place) or ()):
            at = {"item_id": None, INDEXES[place]: number}
            stem = "response.refusal" if "text" not in part else f"response.{kind}"
            told: Json = {"logprobs": []} if kind == "output_text" and "text" in part else {}
            yield self._form(f"{outer}.added", part={**part, TEXTS[stem][1]: ""}, **at)
            yield from self._of_text(stem, part, at, told, told)
            yield self._form(f"{outer}.done", part=None, **at)

    def _of_text(
        self, stem: str, holder: Json, at: Json, with_delta: Json, with_end: Json
    ) -> Iterator[Any]:
        name = TEXTS[stem][1]
        lengths = self._cut(holder[name])
        if lengths:
            yield self._form(f"{stem}.delta", delta=lengths[0], **at, **with_delta)
            yield from lengths[1:]
        yield self._form(f"{stem}.done", **{name: None}, **at, **with_end)
