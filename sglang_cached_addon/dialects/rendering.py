"""Bodies of the cached APIs as lines for people: what mitmweb shows in place of JSON and events.

Pure, and bounded: of a large body the begin and the end are read, of long texts the same is shown.
Nothing is raised for a body, whatever it is. Knows no API: a dialect's `Display` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects import installed, layout
from sglang_cached_addon.dialects.base import Dialect, generates, nature_of
from sglang_cached_addon.dialects.display import (
    MAX_TEXT,
    Display,
    Passage,
    Shown,
    display_of,
    members,
    written,
)
from sglang_cached_addon.wire import sse

MAX_JSON = 4 << 20
"""How many bytes of JSON are taken apart."""

MAX_EVENTS = 1 << 20
"""How many bytes of a stream are taken apart: half of them at its begin, half at its end."""

MAX_ASKED = 1 << 20
"""How many bytes of a request are read to tell which sample of an answer is whose."""


def request(dialect: Dialect, data: bytes, said: Sequence[str]) -> Iterator[layout.Line]:
    """A request of a dialect; `said` is what the cache said of its answer, if it is there."""
    value = _parsed(data)
    if not isinstance(value, dict):
        yield from layout.opening(dialect.name, (), said)
        yield from as_it_is(data)
        return
    display = display_of(dialect)
    yield from layout.opening(dialect.name, _wanted(dialect, value), said)
    yield from _asked(display, value)


def answer(
    dialect: Dialect, data: bytes, said: Sequence[str], *, asked: bytes, is_stream: bool
) -> Iterator[layout.Line]:
    """An answer of a dialect to the request that `asked` is the body of."""
    reader, errors = display_of(dialect).reader(), []
    notes: list[str] = []
    if is_stream:
        events, notes = _events(data, nature_of(dialect).last_events)
    elif (value := _parsed(data)) is not None:
        events = [value]
    else:
        yield from layout.opening(dialect.name, (), said)
        yield from as_it_is(data)
        return
    for event in events:
        if event is None:
            reader.skip()
        elif error := _error(event):
            errors.append(Passage("error", written(error, indented=True)))
        else:
            reader.add(event)
    yield from layout.opening(dialect.name, reader.facts(), said)
    for note in notes:
        yield layout.Style.ERROR, note
    samples = reader.samples()
    call = _call(dialect, asked) if samples else None
    yield from layout.passages([*errors, *_labelled(samples, call)])


def entry(
    api: str, call: dict[str, Any], answers: Sequence[Mapping[str, Any]]
) -> Iterator[layout.Line]:
    """An entry of the store: its call, and its samples as `/cache/entries/KEY` tells them."""
    dialect = next((d for d in installed().values() if d.name == api), None)
    display, is_generated = display_of(dialect), dialect is None or generates(dialect)
    yield from layout.opening(api, [f"{len(answers)} samples"], ())
    yield from _asked(display, call)
    headings = [f"sample {k + 1} of {len(answers)}" for k in range(len(answers))]
    pairs = zip(headings, answers, strict=True)
    samples = [_stored(heading, each, is_generated=is_generated) for heading, each in pairs]
    yield from layout.passages(samples)


def _stored(heading: str, told: Mapping[str, Any], *, is_generated: bool) -> Passage:
    facts: list[str] = []
    if is_generated:
        facts = [str(told["finish_reason"] or "unfinished"), f"{told['tokens']} tokens"]
    return Passage(heading, told["text"], (*facts, *(f"run {name}" for name in told["runs"])))


def _asked(display: Display, body: dict[str, Any]) -> Iterator[layout.Line]:
    """What a call asks: its passages, and all other fields."""
    yield from layout.passages(display.passages(body))
    rest = {name: member for name, member in body.items() if name not in display.spoken}
    if rest:
        yield from layout.heading(Passage("parameters"))
        yield from layout.table(rest)


def as_it_is(data: bytes) -> Iterator[layout.Line]:
    """A body that cannot be taken apart: its begin."""
    if len(data) > MAX_JSON:
        yield layout.Style.ERROR, f"{len(data):,} bytes are too many to be taken apart"
    yield layout.Style.TEXT, ""
    yield from layout.lines(data[:MAX_TEXT].decode(errors="replace"))
    if len(data) > MAX_TEXT:
        yield layout.Style.ERROR, f"{len(data) - MAX_TEXT:,} more bytes are not shown"


def _wanted(dialect: Dialect, body: dict[str, Any]) -> list[str]:
    """What a request wants, in a line."""
    named = [written(body["model"])] if body.get("model") else []
    if not generates(dialect):
        return named
    params = members(body.get("sampling_params"))
    n = body.get("n", params.get("n", 1))
    many = [f"n={written(n)}"] if nature_of(dialect).has_n else []
    return [*named, *many, *(["stream"] if body.get("stream") is True else [])]


def _labelled(samples: Sequence[Shown], call: Call | None) -> Iterator[Passage]:
    """Samples with a heading each: by prompts, where it is known that the call has several."""
    n = call.n if call else 0
    total = max([call.size if call else 0, *(sample.index + 1 for sample in samples)])
    for sample in samples:
        heading = f"sample {sample.index + 1} of {total}"
        if call and call.is_pure:
            heading = f"input {sample.index + 1} of {total}"
        elif call and len(call.items) > 1 and sample.index >= 0:
            heading = f"prompt {sample.index // n + 1}, sample {sample.index % n + 1} of {n}"
        yield Passage(heading, sample.text, sample.facts)


def _parsed(data: bytes) -> Any:
    """The value of JSON; None where it is none, or more than is read."""
    try:
        return orjson.loads(data) if len(data) <= MAX_JSON else None
    except ValueError:
        return None


def _error(value: Any) -> Any:
    """The error that an answer or an event tells, if it tells one."""
    told = members(value)
    return told.get("error") or (told if told.get("object") == "error" else None)


def _events(data: bytes, last: Collection[str]) -> tuple[list[Any], list[str]]:
    """The parsed events of a stream, with None where some are left out; and what is to be said of
    it. `last` are `Nature.last_events`."""
    notes = []
    head, tail = data, b""
    if len(data) > MAX_EVENTS:
        half = MAX_EVENTS // 2
        head, tail = data[:half], data[-half:]
        tail = tail[tail.find(b"\n\n") + 2 :]
        notes.append(
            f"{len(data) - MAX_EVENTS:,} of {len(data):,} bytes are left out in the middle"
        )
    events, is_done = _parsed_events(head)
    if tail:
        more, is_done = _parsed_events(tail)
        events += [None, *more]
    if not is_done and not (events and members(events[-1]).get("type") in last):
        notes.append("the stream has no end: it is under way, or was cut")
    return events, notes


def _parsed_events(data: bytes) -> tuple[list[Any], bool]:
    """What the events say, and whether the last one ends the stream."""
    events = map(_without_name, sse.Splitter().feed(data))
    said = [found for event in events if (found := sse.data(event)) is not None]
    is_done = bool(said) and said[-1] == sse.DONE_DATA
    values = (_parsed(each) for each in said if each != sse.DONE_DATA)
    return [value for value in values if value is not None], is_done


def _without_name(event: bytes) -> bytes:
    """An event as one that is not named: that its data says what it is will do for people."""
    return event.partition(b"\n")[2] if event.startswith(b"event:") else event


def _call(dialect: Dialect, body: bytes) -> Call | None:
    """The call that a body makes, where its dialect understands it."""
    value = _parsed(body) if len(body) <= MAX_ASKED else None
    try:
        return dialect.read(value) if isinstance(value, dict) else None
    except Refused:
        return None
