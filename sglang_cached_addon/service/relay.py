"""A streamed answer on its way from upstream to clients: what is recorded, what each one sees.

Pure. `Relay` makes of upstream's bytes the events of the whole answer, with the stored
choices before those that are being generated; `View` is what one client gets of an event.
Nothing here waits: what came of an event is passed on, and recorded, as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from sglang_cached_addon.core import planning
from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.call import Call, Part, Recorded, Split, UpstreamCall, without_skipped
from sglang_cached_addon.core.planning import Plan
from sglang_cached_addon.core.policy import MAX_STREAM, Reason, Refused
from sglang_cached_addon.dialects.base import Generating, nature_of
from sglang_cached_addon.wire import sse


class Event(NamedTuple):
    """One event of the whole answer, before it is shown in a client's own words."""

    data: bytes
    part: Part
    choice: int = 0


class Relay:
    """One stream of upstream's, as it comes."""

    def __init__(
        self, dialect: Generating, plan: Plan, sent: UpstreamCall, longest: int = MAX_STREAM
    ) -> None:
        """`longest` is the number of bytes that are recorded."""
        self.is_done = False
        """Whether its terminator has come."""
        self.reason: Reason | None = None
        """Why it cannot be recorded; None as long as it can."""
        self.is_in_pieces = False
        """Whether an event was too long to be read, and is passed on in pieces as it comes."""
        self._dialect = dialect
        self._plan = plan
        self._is_topped_up = plan.have > 0
        self._recorder = dialect.record(plan.call, sent)
        self._longest = longest
        self._recorded = 0
        """How many bytes of the stream the present recorder has seen."""
        self._splitter = sse.Splitter()
        self._sent = sent
        self._names = nature_of(dialect).event_names
        self._is_plain = not (plan.have or sent.counts or sent.skip)
        """Whether upstream's events are the client's as they are."""
        self._choices = _choices(plan, sent)
        self._finishes: list[Event] | None = None
        """The last events of the stored choices, until they are sent; None before it has begun."""

    def feed(self, data: bytes) -> list[Event]:
        """The events that the bytes complete, none of them held back."""
        events = self._begin() if self._finishes is None else []
        self._recorded += len(data)
        if self._recorded > self._longest:
            self.reason = self.reason or Reason.TOO_LARGE
            # What it holds is of no use any more; another one tells what events are, too.
            self._recorder, self._recorded = self._dialect.record(self._plan.call, self._sent), 0
        for event in self._splitter.feed(data):
            self._take(event, events)
        if pieces := self._splitter.overflow():
            self.reason = self.reason or Reason.UNREADABLE
            self.is_in_pieces = True
            events += [Event(piece, Part.OTHER) for piece in pieces]
        return events

    def remains(self) -> list[Event]:
        """What has come of an event that has not ended."""
        rest = self._splitter.unfinished
        return [Event(rest, Part.OTHER)] if rest else []

    def split(self) -> Split:
        """The samples of a stream that is done; raises `Refused`."""
        if self.reason:
            raise Refused(self.reason)
        return self._recorder.split()

    def _begin(self) -> list[Event]:
        """The events of the stored choices, but for their last ones."""
        if not self._is_topped_up:
            self._finishes = []
            return []
        script = self._dialect.script(self._plan.call, self._plan.stored)
        self._finishes = [Event(event, Part.FINISH) for event in script.finishes]
        pairs = zip(planning.stored_choices(self._plan), script.deltas, strict=True)
        return [Event(event, Part.DELTA, choice) for choice, events in pairs for event in events]

    def _take(self, event: bytes, events: list[Event]) -> None:
        """Adds what becomes of one of upstream's events."""
        said = sse.data(event, self._names)
        if said is None:
            if not sse.is_silent(event):
                self.reason = self.reason or Reason.UNREADABLE
            events.append(Event(event, Part.OTHER))
            return
        if said == sse.DONE_DATA:
            self.is_done = True
            events += [*self._take_finishes(), Event(event, Part.OTHER)]
            return
        if self._is_plain and self._recorder.repeats(said):
            events.append(Event(event, Part.DELTA))
            return
        try:
            value = orjson.loads(said)
        except ValueError:
            self.reason = self.reason or Reason.UNREADABLE
            events.append(Event(event, Part.OTHER))
            return
        part, choice = self._record(value, said)
        self.is_done = self.is_done or part is Part.END
        if part in _OF_ONE and self._sent.is_skipped(choice):
            return
        if part is Part.DELTA and self._sent.counts:
            event = self._dialect.without_usage(event, value)
            value = orjson.loads(sse.data(event) or b"") if self._is_topped_up else None
        if self._is_topped_up:
            if part is Part.FINISH or part is Part.USAGE:
                events += self._take_finishes()
            event, choice = self._rewrite(event, value, part, choice)
        events.append(Event(event, part, choice))

    def _record(self, value: Any, said: bytes) -> tuple[Part, int]:
        """What an event is, also where there is nothing to be recorded any more."""
        try:
            return self._recorder.add(value, said if self._is_plain else b"")
        except Refused as refused:
            self.reason = self.reason or refused.reason
            return Part.OTHER, 0

    def _take_finishes(self) -> list[Event]:
        """Choices end together, so the stored ones do when the first of upstream's does."""
        finishes, self._finishes = self._finishes, []
        return finishes or []

    def _rewrite(self, event: bytes, value: Any, part: Part, choice: int) -> tuple[bytes, int]:
        """Makes an event of an upstream call one of the client's answer."""
        if part is Part.USAGE:
            return self._usage(value) or event, 0
        if part is Part.ERROR:
            return event, 0
        like = next(self._plan.samples())
        try:
            self._dialect.renumber(value, self._choices, like)
            return sse.event(orjson.dumps(value)), self._choices[choice]
        except _ODD:
            return event, 0

    def _usage(self, said: Any) -> bytes | None:
        """The usage of the whole answer, given that of upstream's part of it."""
        whole: list[list[Recorded]] | None
        try:
            new = without_skipped(self.split(), self._sent).generations
            whole = planning.recorded(self._plan, new)
        except Refused:
            whole = self._counted(said)
        return self._dialect.usage(self._plan.call, whole) if whole else None

    def _counted(self, said: Any) -> list[list[Recorded]] | None:
        """The samples of the answer for those who count: upstream's part, which cannot be taken
        apart, is one more of a prompt whose own tokens are known."""
        whole: list[list[Recorded]] = [list(pool) for pool in self._plan.stored]
        if not all(whole):
            return None
        part = {**orjson.loads(whole[0][0].answer), "usage": said.get("usage")}
        whole[0].append(Sample(orjson.dumps(part), 0.0, 0.0, 0))
        return whole


_ECHOES = (Part.ECHO, Part.END)

_OF_ONE = (Part.DELTA, Part.STATE, Part.FINISH)

# What comes of putting numbers or ids into an event that has no place for them.
_ODD = (AttributeError, LookupError, TypeError, ValueError)


def _choices(plan: Plan, sent: UpstreamCall) -> list[int]:
    """Which choice of the client's answer each one of the upstream call is; -1 for one that is
    there."""
    taken = [len(pool) for pool in plan.stored]
    choices: list[int] = []
    for item in sent.order:
        for _ in range(sent.n):
            if sent.is_skipped(len(choices)):
                choices.append(-1)
                continue
            choices.append(item * plan.call.n + taken[item])
            taken[item] += 1
    return choices


class View:
    """A stream as one client sees it."""

    def __init__(self, dialect: Generating, call: Call) -> None:
        self._dialect = dialect
        self._call = call
        self._names = nature_of(dialect).event_names
        self._wants_usage = call.stream is not None and call.stream.usage

    def show(self, events: Sequence[Event]) -> list[bytes]:
        """These events in the client's own words."""
        return [
            self._own(event) if self._call.rids or event.part in _ECHOES else event.data
            for event in events
            if self._wants_usage or event.part is not Part.USAGE
        ]

    def _own(self, event: Event) -> bytes:
        """An event with what is the client's own, where it has any of it."""
        if event.part is Part.ERROR:
            return event.data
        try:
            value = orjson.loads(sse.data(event.data, self._names) or b"")
            if not self._dialect.rename(value, self._call):
                return event.data
            name = value["type"].encode() if self._names else b""
            return sse.event(orjson.dumps(value), name)
        except _ODD:
            return event.data
