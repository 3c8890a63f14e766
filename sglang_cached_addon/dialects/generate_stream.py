"""Streams of `/generate`: events to samples, and samples to events.

An event is the object that answers a call for one sample, as far as it has come. Text,
`output_ids` and log-probabilities are those of all tokens so far (a cumulative server, the
default) or of the new ones (`--incremental-streaming-output`); which it is shows in the
events. A sample's `deltas` hold where its events ended, so that it is replayed in as many,
and in the same style. Checked against SGLang 0.5.23 (tokenizer_manager.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from sglang_cached_addon.core.call import Part, Recorded, Split, with_deltas
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging

UNSTREAMABLE = (
    "return_hidden_states",
    "return_routed_experts",
    "return_indexer_topk",
    "return_flat_raw_top_logprobs",
    "return_flat_raw_output_top_logprobs",
    "return_sampling_mask",
)
"""Fields for which an event has neither what came so far nor what is new."""

# One member for each token, so that an event has as many as it has `output_ids`.
BY_TOKEN = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")

# What the first event alone has, and what the last alone has: times, and facts of the whole.
_FIRST_ONLY = "response_sent_to_client_ts"
_LAST_ONLY = ["weight_versions", "e2e_latency"]


class ChoiceRecorder:
    """Puts the events of one choice together."""

    def __init__(self) -> None:
        self.incremental: bool | None = None
        """Whether events have only what is new. None as long as that cannot be seen."""
        self.is_finished = False
        self._last: dict[str, Any] = {}
        self._text = ""
        self._ids: list[int] = []
        self._rows: dict[str, list[Any]] = {}
        self._first_meta: dict[str, Any] | None = None
        self._steps: list[list[Any]] = []

    def add(self, event: dict[str, Any]) -> None:
        meta, ids, text = event.get("meta_info"), event.get("output_ids"), event.get("text", "")
        if self.is_finished or not isinstance(meta, dict) or not isinstance(text, str):
            raise Refused(Reason.UNREADABLE)
        self.is_finished = meta.get("finish_reason") is not None
        tokens = meta.get("completion_tokens")
        if type(tokens) is not int or not isinstance(ids, list):
            raise Refused(Reason.UNREADABLE)
        self._tell_style(len(ids), tokens)
        if self.incremental is False:
            if not text.startswith(self._text):
                self._retract(text)
            self._text, self._ids = text, ids
        else:
            self._add_news(text, ids, meta)
        if self._first_meta is None:
            self._first_meta = meta
        self._last = event
        self._steps.append([len(self._text), tokens, len(self._ids), meta.get("reasoning_tokens")])

    def _add_news(self, text: str, ids: list[Any], meta: dict[str, Any]) -> None:
        if self.incremental is None and (self._text or self._ids):
            raise Refused(Reason.UNREADABLE)  # whose tokens are not counted
        self._text += text
        self._ids += ids
        for name in BY_TOKEN:
            if isinstance(meta.get(name), list):
                self._rows.setdefault(name, []).extend(meta[name])

    def _tell_style(self, count: int, tokens: int) -> None:
        before = self._steps[-1][1] if self._steps else 0
        # An event of a cumulative server may have ids that it does not count yet.
        style = False if count >= tokens else True if count == tokens - before else None
        if style is None or (before and self.incremental not in (None, style)):
            raise Refused(Reason.UNREADABLE)
        if before:
            self.incremental = style

    def _retract(self, text: str) -> None:
        """Keeps, for earlier events, text that the server has taken back since."""
        pairs = enumerate(zip(self._text, text, strict=False))
        common = next((i for i, (was, now) in pairs if was != now), min(len(self._text), len(text)))
        for step in self._steps:
            if type(step[0]) is int and step[0] > common:
                step[0] = self._text[: step[0]]

    def native(self) -> dict[str, Any]:
        """The answer that a call without `stream` would have got."""
        if not self.is_finished:
            raise Refused(Reason.UNFINISHED)
        native = {name: value for name, value in self._last.items() if name != "index"}
        meta = native["meta_info"] = dict(native["meta_info"])
        if self.incremental and any(map(_is_news, meta, meta.values())):
            raise Refused(Reason.UNREADABLE)
        if self.incremental:
            native["output_ids"] = self._ids
            if "text" in native:
                native["text"] = self._text
            meta.update(self._rows)
        if self._first_meta and _FIRST_ONLY in self._first_meta:
            meta.setdefault(_FIRST_ONLY, self._first_meta[_FIRST_ONLY])
        return native

    def deltas(self) -> bytes:
        """`[style, step, ...]`, with a step for each event but the last, which is the answer
        itself.

        A step is `[characters, tokens]` so far; more follows where it does not follow from
        these."""
        if len(self._steps) < 2 or self._first_meta is None:
            return b""
        meta = self._last["meta_info"]
        style: dict[str, Any] = {"incremental": True} if self.incremental else {}
        last_only = [name for name in meta if name not in self._first_meta]
        if last_only != _LAST_ONLY:
            style["last"] = last_only
        whole = meta.get("reasoning_tokens")
        return judging.dump([style, *[_short(step, whole) for step in self._steps[:-1]]])


def _is_news(name: str, value: Any) -> bool:
    """Whether a member of the last event's `meta_info` may be about its own tokens only, without
    being one of the lists that are put together."""
    is_whole = name in (*BY_TOKEN, "weight_versions") or name.startswith("input_")
    return isinstance(value, list) and not is_whole


def _short(step: list[Any], reasoning: Any) -> list[Any]:
    characters, tokens, ids, reasoned = step
    if reasoned != reasoning:
        return [characters, tokens, ids, reasoned]
    return [characters, tokens] if ids == tokens else [characters, tokens, ids]


def events(sample: Recorded, index: int | None, rid: str | None) -> list[bytes]:
    """The data of a sample's events. `index` is None in the answer to a single prompt with n=1."""
    tail = {} if index is None else {"index": index}
    if not sample.deltas and rid is None:
        if index is None:
            return [sample.answer]
        return [sample.answer[:-1] + b',"index":%d}' % index]
    native: dict[str, Any] = orjson.loads(sample.answer)
    meta = native["meta_info"]
    if rid is not None:
        meta["id"] = rid
    style, *steps = orjson.loads(sample.deltas) if sample.deltas else [{}]
    if not steps:
        return [judging.dump({**native, **tail})]
    last_meta = {name: value for name, value in meta.items() if name != _FIRST_ONLY}
    last_only = style.get("last", _LAST_ONLY)
    shared = {name: value for name, value in last_meta.items() if name not in last_only}
    lists = [name for name in BY_TOKEN if isinstance(shared.get(name), list)]
    text: str = native.get("text", "")
    found: list[bytes] = []
    # How many characters and tokens earlier events had, where events have only what is new.
    said = given = 0
    for characters, tokens, *more in steps:
        ids = more[0] if more else tokens
        told = {**shared, "finish_reason": None, "completion_tokens": tokens}
        if len(more) > 1:
            told["reasoning_tokens"] = more[1]
        if "output_token_logprobs_length" in told:
            told["output_token_logprobs_length"] = tokens
        if not found and _FIRST_ONLY in meta:
            told[_FIRST_ONLY] = meta[_FIRST_ONLY]
        news = characters if isinstance(characters, str) else text[said:characters]
        found.append(_event(native, told, lists, slice(given, ids), news, tail))
        if style.get("incremental"):
            said, given = characters, ids
    return [*found, _event(native, last_meta, lists, slice(given, None), text[said:], tail)]


def _event(
    native: dict[str, Any],
    meta: dict[str, Any],
    lists: list[str],
    tokens: slice,
    text: str,
    tail: dict[str, Any],
) -> bytes:
    """The data of an event that has these tokens of a sample, and of its `lists` by token, and this
    text."""
    rows = {name: meta[name][tokens] for name in lists}
    value = {**native, "output_ids": native["output_ids"][tokens]}
    if "text" in value:
        value["text"] = text
    return judging.dump({**value, "meta_info": {**meta, **rows}, **tail})


class Recorder:
    """Makes samples of a stream, whose events it sorts by choice."""

    def __init__(self, total: int, is_array: bool, split: Callable[[Any], Split]) -> None:
        """`is_array`: a call without `stream` would get an array, which `split` takes apart."""
        self._recorders = [ChoiceRecorder() for _ in range(total)]
        self._is_array = is_array
        self._split = split
        self._is_error = False

    def repeats(self, said: bytes) -> bool:
        return False  # each event has other counts

    def add(self, event: Any, said: bytes = b"") -> tuple[Part, int]:
        if not isinstance(event, dict):
            raise Refused(Reason.UNREADABLE)
        if judging.is_error(event):
            self._is_error = True
            return Part.ERROR, 0
        index = event.get("index") if self._is_array else event.get("index", 0)
        if type(index) is not int or not 0 <= index < len(self._recorders):
            raise Refused(Reason.UNREADABLE)
        recorder = self._recorders[index]
        recorder.add(event)
        # The first of a choice is all of it so far, in either style.
        return (Part.DELTA if recorder.incremental else Part.STATE), index

    def split(self) -> Split:
        if self._is_error:
            raise Refused(Reason.ERROR)
        natives = [recorder.native() for recorder in self._recorders]
        split = self._split(natives if self._is_array else natives[0])
        return with_deltas(split, [recorder.deltas() for recorder in self._recorders])
