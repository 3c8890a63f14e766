"""Streams to samples: envelopes, choices and usage.

Pure. `Recorder` makes, of the chunks of a stream, the JSON answer that the same call without
`stream` would have had, which is then taken apart like any other; what a choice's chunks add to it
is for a `ChoiceRecorder` of the API. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any, Protocol

import orjson

from sglang_cached_addon.core.call import Part, Split, with_deltas
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.frame import Frame
from sglang_cached_addon.dialects.openai import choices as answers

CHOICE = ("index", "logprobs", "finish_reason", "matched_stop")
"""The members that a choice has in chunks and in JSON, with both APIs."""

NOT_OF_THE_HEAD = ("choices", "usage", "metadata", "sglext")
"""Members of an event or an answer that are not kept as they are."""
OF_EACH = ("id", "object", "created")
"""Members whose value may differ from event to event."""
_NO_NEWS = frozenset((*NOT_OF_THE_HEAD, *OF_EACH))


class ChoiceRecorder(Protocol):
    """Puts the chunks of one choice together."""

    rows: int
    """How many tokens have come with their log-probabilities."""
    is_finished: bool
    """The choice has told why it ended."""
    is_text: bool
    """The last chunk had a text, and nothing else that is kept of it."""

    def add(self, choice: dict[str, Any], tokens: int | None) -> bool:
        """Takes a chunk's choice, and how many tokens it has so far where that is told. Gives
        whether the chunk does nothing but finish the choice. Raises `Refused`."""

    def say(self, text: str) -> None:
        """Takes a chunk that differs from the last one, which `is_text`, in its text alone."""

    def text(self, choice: Any) -> Any:
        """The text of such a chunk's choice."""

    def choice(self) -> dict[str, Any]:
        """The choice that a call without `stream` would have got."""

    def steps(self) -> list[Any]:
        """Where the chunks began and ended, for a sample's `deltas`."""


def refuse_unknown(choice: dict[str, Any], known: Set[str], *, is_end: bool) -> None:
    """Raises `Refused` for a chunk's choice, or its delta, with members that would be lost. The
    last one of a choice may have more members, but no lists: these would have had parts before."""
    if choice.keys() <= known:
        return
    for name, value in choice.items():
        if name not in known and value is not None and (not is_end or type(value) in (list, dict)):
            raise Refused(Reason.UNREADABLE)


class Recorder:
    """Makes samples of a stream, whose chunks it sorts by choice."""

    def __init__(
        self,
        recorders: Sequence[ChoiceRecorder],
        kind: str,
        split: Callable[[Any, answers.StreamFacts], Split],
        *,
        server: Server = UNKNOWN,
        wants_rows: bool = False,
    ) -> None:
        """`kind` is the `object` of a JSON answer, and `split` takes such an answer apart.
        `wants_rows` says that JSON would have the log-probabilities of every token."""
        self._recorders = recorders
        self._kind = kind
        self._split = split
        self._server = server
        self._wants_rows = wants_rows
        self._usages: list[dict[str, Any] | None] = [None] * len(recorders)
        self._late: list[dict[str, Any]] = [{} for _ in recorders]
        """For each choice, the members that came with it later than the first event."""
        self._last: dict[str, Any] = {}
        """The members that came with the usage."""
        self._head: dict[str, Any] = {}
        """The members of the first event that the answer has."""
        self._ids = [""] * len(recorders)
        self._usage: dict[str, Any] | None = None
        self._is_error = False
        self._frame: Frame | None = None
        """The frame of the event before, if it was a text of the only choice."""

    def repeats(self, said: bytes) -> bool:
        text = self._frame.text(said) if self._frame else ""
        if text:
            self._recorders[0].say(text)
        return bool(text)

    def add(self, event: Any, said: bytes = b"") -> tuple[Part, int]:
        self._frame = None
        if not isinstance(event, dict):
            raise Refused(Reason.UNREADABLE)
        if judging.is_error(event):
            self._is_error = True
            return Part.ERROR, 0
        choices, usage = event.get("choices"), event.get("usage")
        if not self._head:
            self._head = {
                name: value for name, value in event.items() if name not in NOT_OF_THE_HEAD
            }
        if choices == [] and isinstance(usage, dict) and event.get("sglext") is None:
            self._usage = usage
            self._last = self._news(event)
            return Part.USAGE, 0
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise Refused(Reason.UNREADABLE)
        index, rid = choices[0].get("index"), event.get("id")
        if type(index) is not int or not 0 <= index < len(self._recorders):
            raise Refused(Reason.UNREADABLE)
        if not isinstance(rid, str):
            raise Refused(Reason.UNREADABLE)
        self._ids[index] = self._ids[index] or rid
        self._late[index].update(self._news(event))
        tokens = None
        if isinstance(usage, dict):
            tokens, self._usages[index] = usage.get("completion_tokens"), usage
        is_finish = self._recorders[index].add(choices[0], tokens if type(tokens) is int else None)
        if is_finish:
            # SGLang's has the id of whichever choice spoke last.
            event["id"] = self._ids[index]
        elif said and self._recorders[index].is_text and len(self._recorders) == 1:
            self._frame = self._framed(said, choices[0])
        return (Part.FINISH if is_finish else Part.DELTA), index

    def _framed(self, said: bytes, choice: dict[str, Any]) -> Frame | None:
        """The frame of a chunk's text; None where that is empty, or written in another way."""
        recorder = self._recorders[0]
        before, found, behind = said.partition(orjson.dumps(recorder.text(choice)))
        try:  # it is the text, and not another string, if another text can be put in its place
            like = orjson.loads(before + b'""' + behind)
            is_text = found != b'""' and recorder.text(like["choices"][0]) == ""
        except (ValueError, LookupError):
            return None
        return Frame(before, behind) if is_text else None

    def _news(self, event: dict[str, Any]) -> dict[str, Any]:
        """The members of an event that the first one did not have, or had with another value."""
        head = self._head
        return {
            name: value
            for name, value in event.items()
            if name not in _NO_NEWS and value is not None and head.get(name) != value
        }

    def split(self) -> Split:
        if self._is_error:
            raise Refused(Reason.ERROR)
        if not all(recorder.is_finished for recorder in self._recorders):
            raise Refused(Reason.UNFINISHED)
        if self._usage is None:
            raise Refused(Reason.NO_USAGE)
        total = self._usage.get("completion_tokens")
        is_short = self._wants_rows and sum(recorder.rows for recorder in self._recorders) != total
        choices = [{**recorder.choice(), "index": k} for k, recorder in enumerate(self._recorders)]
        answer = {
            **self._head,
            "object": self._kind,
            "choices": choices,
            "usage": _json_usage(self._usage),
            **answers.metadata(self._server),
        }
        members = [{**late, **self._last} for late in self._late]
        split = self._split(answer, answers.StreamFacts(self._ids, self._usages, members))
        if is_short and split.refusal in (None, Reason.SHARED_USAGE):
            split = replace(split, refusal=Reason.LOST_LOGPROBS)
        pairs = zip(self._recorders, self._late, strict=True)
        return with_deltas(
            split, [self._deltas(recorder.steps(), late) for recorder, late in pairs]
        )

    def _deltas(self, steps: list[Any], late: dict[str, Any]) -> bytes:
        """The steps of a choice, and the names of the members that do not come with each chunk."""
        if late or self._last:
            steps = [*steps, {"late": list(late), "usage": list(self._last)}]
        return judging.dump(steps)


def _json_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """A usage of SGLang's with the members that its streams leave out where they are null."""
    if "reasoning_tokens" not in usage:
        return usage  # another server's
    return {**{name: usage.get(name) for name in _USAGE}, **usage}


_USAGE = (
    "prompt_tokens",
    "total_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "reasoning_tokens",
    "completion_tokens_details",
)
