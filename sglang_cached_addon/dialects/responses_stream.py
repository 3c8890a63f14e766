"""Streams of `/v1/responses`: events to samples.

An answer begins; then its items come one after the other, each with its beginning, its parts and
its end; the last event has the whole answer, which is the sample. Its `deltas` are a list: where
its events are those that SGLang makes of such an answer, of the lengths of the deltas of one text
after the other; else of the forms of all events, as `responses_events` has them.

Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from sglang_cached_addon.core.call import Part, Split, with_deltas
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    judging,
    responses_answer,
    responses_events,
    responses_forms,
)
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.responses_run import Run

EVENTS = frozenset(name.encode() for name in (*responses_events.NAMES, "error"))
"""The names of events."""

_ODD = (LookupError, TypeError, AttributeError)
"""What comes of an event that is about nothing in the answer."""


class Recorder:
    """Makes a sample of a stream, as `base.Recorder`."""

    def __init__(self, body: Json) -> None:
        self._body = body
        self._events: list[Json | Run] = []
        self._count = 0
        """How many events have come."""
        self._run: Run | None = None
        """The deltas of which the last event was one."""
        self._end: Json = {}
        self._reason: Reason | None = None
        """Why it is no sample."""

    def repeats(self, said: bytes) -> bool:
        is_next = self._run is not None and self._run.repeats(said)
        self._count += is_next
        return is_next

    def add(self, event: Any, said: bytes = b"") -> tuple[Part, int]:
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "error" or judging.is_error(event):
            self._reason = Reason.ERROR
            return Part.ERROR, 0
        if not self._is_next(event, kind):
            self._reason = self._reason or Reason.UNREADABLE
        part = _part(kind)
        if not self._reason:
            self._count += 1
            self._take(event, said)
            self._end = event if part is Part.END else {}
        elif part is Part.DELTA:
            raise Refused(self._reason)
        return part, 0

    def _is_next(self, event: Any, kind: Any) -> bool:
        """Whether such an event may come now."""
        if not isinstance(kind, str) or kind not in responses_events.NAMES or self._end:
            return False
        if kind.endswith(".delta") and type(event.get("delta")) is not str:
            return False
        if kind in responses_events.BEGINNINGS and not isinstance(event.get("response"), dict):
            return False
        number = event.get("sequence_number", self._count)
        return type(number) is int and number == self._count

    def _take(self, event: Json, said: bytes) -> None:
        if not event["type"].endswith(".delta"):
            self._run = None
            self._events.append(event)
        elif not (self._run and self._run.adds(event)):
            self._run = Run(event, said)
            self._events.append(self._run)

    def split(self) -> Split:
        if self._reason or not self._end:
            raise Refused(self._reason or Reason.UNFINISHED)
        answer: Any = self._end.get("response")
        found = responses_answer.split(answer)
        if found.refusal:
            return found
        if not isinstance(answer.get("usage"), dict):
            raise Refused(Reason.NO_USAGE)
        if answer["status"] == "incomplete" and _may_call(self._body):
            raise Refused(
                Reason.UNREADABLE
            )  # JSON has what it is silent of: a call that is cut off
        try:
            return with_deltas(found, [judging.dump(self._deltas(answer))])
        except _ODD:
            raise Refused(Reason.UNREADABLE) from None

    def _deltas(self, answer: Json) -> list[Any]:
        begun = responses_answer.begun(answer, self._body)
        forms = [form for event in self._events for form in _forms(event, answer, begun)]
        pieces = list(self._pieces(answer, begun))
        own = list(responses_forms.forms(answer, pieces))
        return pieces if judging.dump(own) == judging.dump(forms) else forms

    def _pieces(self, answer: Json, begun: Json) -> Iterator[list[int]]:
        """The lengths of the deltas of each text, which have to come to that text. Raises
        `Refused`."""
        come: defaultdict[str, list[str]] = defaultdict(list)
        wanted: dict[str, str] = {}
        for event in self._events:
            if isinstance(event, Run):
                place = responses_events.place(event.first)
                come[place] += event.texts
                wanted[place] = responses_events.known(event.first, answer, begun)["delta"]
            elif responses_events.has_text(event):
                yield [len(text) for text in come[responses_events.place(event)]]
        if any("".join(come[place]) != text for place, text in wanted.items()):
            raise Refused(Reason.UNREADABLE)


def _part(kind: Any) -> Part:
    """What an event of this type is."""
    if isinstance(kind, str) and kind in responses_events.ENDS:
        return Part.END
    is_echo = isinstance(kind, str) and kind in responses_events.BEGINNINGS
    return Part.ECHO if is_echo else Part.DELTA


def _may_call(body: Json) -> bool:
    """Whether the model may call tools."""
    return bool(responses_answer.declared(body)) and body.get("tool_choice") != "none"


def _forms(event: Json | Run, answer: Json, begun: Json) -> Iterator[Any]:
    """The forms of an event, or of some deltas."""
    if isinstance(event, Run):
        first, *others = map(len, event.texts)
        known = responses_events.known(event.first, answer, begun)
        yield {**_form(event.first, known), "delta": first}
        yield from others
    else:
        yield _form(event, responses_events.known(event, answer, begun))


def _form(event: Json, known: Json) -> Json:
    """An event without what is known of it. Raises `Refused` for one that could not be told from
    another by that."""
    form = {}
    for name, value in event.items():
        is_known = name == "sequence_number" or (
            name in known and judging.dump(value) == judging.dump(known[name])
        )
        if value is None and known.get(name) is not None:
            raise Refused(Reason.UNREADABLE)
        form[name] = None if is_known else value
    return form
