"""Streams that are kept as they came: those of servers that are not SGLang.

Pure. Nobody knows how such a server would write in JSON what it has streamed, or the other way
round, so that its streams are samples of their own (`Server.streams_apart`), and their events are
given again as they were. A sample's `deltas` is an object: `frames`, which are what many events
have before and behind their text; `events`, each its data, or the number of a frame and a text; and
`usage`, the event that told the usage of the whole answer, if there was one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Part, Recorded, Script, Split, with_deltas
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.openai.choices import StreamFacts, merge_usage
from sglang_cached_addon.wire import sse

_BEGIN = b'{"frames":'
"""How the `deltas` of such a sample begin; those of others are lists."""

_THOUGHTS = ("reasoning_content", "reasoning")
"""The members of a delta that tell what a model thinks."""


@dataclass
class _Choice:
    """What has come of one choice."""

    events: list[tuple[bytes, str]] = field(default_factory=list)
    """The data of each event, and its text."""
    finish: str | None = None
    usage: dict[str, Any] | None = None
    """The last usage that its own events have told."""
    texts: dict[str, str] = field(default_factory=dict)
    calls: dict[Any, dict[str, str]] = field(default_factory=dict)

    def add(self, choice: dict[str, Any], said: bytes) -> None:
        delta = choice.get("delta") if isinstance(choice.get("delta"), dict) else choice
        assert isinstance(delta, dict)
        text = ""
        for name in ("content", "text", *_THOUGHTS):
            part = delta.get(name)
            if isinstance(part, str) and part:
                self.texts[name] = self.texts.get(name, "") + part
                text = text or part
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            self._call(call)
        self.events.append((said, text))
        # TGI has an empty text where others have null.
        finish = choice.get("finish_reason") or self.finish
        self.finish = finish if isinstance(finish, str) else None

    def _call(self, call: Any) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return
        begun = self.calls.setdefault(call.get("index"), {"name": "", "arguments": ""})
        for name in begun:
            begun[name] += function[name] if isinstance(function.get(name), str) else ""

    @property
    def tokens(self) -> int:
        """How many tokens it has. Where that is not told, it is the number of events with a text:
        most servers send one for each token, and it is only for counts of what was saved."""
        told = self.usage.get("completion_tokens") if self.usage else None
        return told if type(told) is int else sum(1 for _, text in self.events if text)

    def answer(self, key: str) -> dict[str, Any]:
        """The choice as people may read it."""
        said: dict[str, Any] = {"finish_reason": self.finish}
        if key == "text":
            return {"index": 0, "text": self.texts.get("text", ""), **said}
        message: dict[str, Any] = {"role": "assistant", "content": self.texts.get("content", "")}
        if thoughts := [self.texts[name] for name in _THOUGHTS if name in self.texts]:
            message["reasoning_content"] = thoughts[0]
        if self.calls:
            message["tool_calls"] = [
                {"type": "function", "function": call} for call in self.calls.values()
            ]
        return {"index": 0, "message": message, **said}

    def packed(self, usage: bytes) -> bytes:
        """As a sample's `deltas`."""
        frames: dict[tuple[str, str], int] = {}
        events: list[Any] = []
        for said, text in self.events:
            before, found, behind = said.decode().partition(orjson.dumps(text).decode())
            if not (text and found):
                events.append(said.decode())
                continue
            events.append([frames.setdefault((before, behind), len(frames)), text])
        whole = {"frames": list(frames), "events": events, "usage": usage.decode() or None}
        return judging.dump(whole)


class Recorder:
    """Makes samples of a stream, whose events it keeps by choice."""

    def __init__(
        self, total: int, kind: str, split: Callable[[Any, StreamFacts], Split], *, counts: bool
    ) -> None:
        """`kind` is the `object` of a JSON answer, and `split` takes such an answer apart. `counts`
        says that only the proxy has asked for the usage of each event."""
        self._choices = [_Choice() for _ in range(total)]
        self._kind = kind
        self._split = split
        self._counts = counts
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._usage_event = b""
        self._is_error = False

    def repeats(self, said: bytes) -> bool:
        return False

    def add(self, event: Any, said: bytes = b"") -> tuple[Part, int]:
        if not isinstance(event, dict):
            raise Refused(Reason.UNREADABLE)
        if judging.is_error(event):
            self._is_error = True
            return Part.ERROR, 0
        self._head = self._head or {n: v for n, v in event.items() if n not in _NOT_OF_THE_HEAD}
        choices, usage = event.get("choices"), event.get("usage")
        if not choices and isinstance(usage, dict):
            self._usage, self._usage_event = usage, said or judging.dump(event)
            return Part.USAGE, 0
        index = self._index(choices)
        choice = self._choices[index]
        if isinstance(usage, dict):
            choice.usage = usage
        kept = self._kept(event, index) or said or judging.dump(event)
        choice.add(choices[0] if choices else {}, kept)
        return Part.DELTA, index

    def _kept(self, event: dict[str, Any], index: int) -> bytes:
        """An event as it is kept, where that is not as it came: as one of the first choice, without
        what only the proxy has asked for."""
        if not (index or self._counts):
            return b""
        kept = {n: v for n, v in event.items() if not (self._counts and n == "usage")}
        return judging.dump({**kept, "choices": [{**event["choices"][0], "index": 0}]})

    def _index(self, choices: Any) -> int:
        """The choice that an event is of. One that is of none, as one that only tells what a filter
        has found, is taken for an event of the only one."""
        if choices in (None, []) and len(self._choices) == 1:
            return 0
        is_one = isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)
        index = choices[0].get("index") if is_one else None
        if type(index) is not int or not 0 <= index < len(self._choices):
            raise Refused(Reason.UNREADABLE)
        return index

    def split(self) -> Split:
        if self._is_error:
            raise Refused(Reason.ERROR)
        if not all(choice.finish for choice in self._choices):
            raise Refused(Reason.UNFINISHED)
        told = [choice.usage for choice in self._choices]
        key = "text" if self._kind == "text_completion" else "message"
        choices = [{**one.answer(key), "index": k} for k, one in enumerate(self._choices)]
        answer = {**self._head, "object": self._kind, "choices": choices}
        if self._usage:
            answer["usage"] = self._usage
        split = self._split(answer, StreamFacts(usages=told))
        if split.refusal is Reason.SHARED_USAGE and not self._usage_event:
            split = replace(split, refusal=None)  # no event tells what they come to
        counted = [
            generation if generation.tokens else replace(generation, tokens=one.tokens)
            for generation, one in zip(split.generations, self._choices, strict=True)
        ]
        split = replace(split, generations=tuple(counted))
        return with_deltas(split, [one.packed(self._usage_event) for one in self._choices])


_NOT_OF_THE_HEAD = ("choices", "usage")


def is_apart(samples: Sequence[Sequence[Recorded]]) -> bool:
    """Whether samples are kept as the events that they came as: all of a server are, or none."""
    return any(sample.deltas.startswith(_BEGIN) for pool in samples for sample in pool[:1])


def script(call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
    """As `Dialect.script`. The events of several samples share what those of the first one have."""
    like, deltas = None, []
    for i, pool in enumerate(samples):
        for j, sample in enumerate(pool):
            like = like or sample
            index = i * call.n + j
            said = _events(sample)
            if sample is not like or index:
                said = map(_numbered(index, like), said)
            deltas.append([sse.event(one) for one in said])
    return Script(tuple(deltas))


def _events(sample: Recorded) -> Iterator[bytes]:
    """The data of each event of a sample."""
    deltas = orjson.loads(sample.deltas)
    frames = [(before.encode(), behind.encode()) for before, behind in deltas["frames"]]
    for event in deltas["events"]:
        if isinstance(event, str):
            yield event.encode()
        else:
            before, behind = frames[event[0]]
            yield before + orjson.dumps(event[1]) + behind


def _numbered(index: int, like: Recorded) -> Callable[[bytes], bytes]:
    """A function that makes an event one of this choice, in the answer that a sample is of, too."""

    def numbered(said: bytes) -> bytes:
        event = orjson.loads(said)
        for choice in event.get("choices") or ():
            choice["index"] = index
        share(event, like)
        return orjson.dumps(event)

    return numbered


def share(event: dict[str, Any], like: Recorded) -> None:
    """Gives an event what all events of an answer have, which is as in a sample of it."""
    answer = orjson.loads(like.answer)
    for name in ("id", "created"):
        if name in event and name in answer:
            event[name] = answer[name]


def usage(samples: Sequence[Sequence[Recorded]]) -> bytes | None:
    """As `Dialect.usage`: None where the server has no event of its own for that."""
    flat = [sample for pool in samples for sample in pool]
    said = orjson.loads(flat[0].deltas)["usage"]
    if not said or len(flat) == 1:
        return sse.event(said.encode()) if said else None
    answers = [[orjson.loads(sample.answer) for sample in pool] for pool in samples]
    if not all(isinstance(one.get("usage"), dict) for pool in answers for one in pool):
        return None
    merged = merge_usage([[one["usage"] for one in pool] for pool in answers])
    return sse.event(judging.dump({**orjson.loads(said), "usage": merged}))
