"""Samples to streams: envelopes and usage; the chunks themselves are for each API.

Pure. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import orjson

from sglang_cached_addon.core.call import Call, Recorded, Script
from sglang_cached_addon.dialects import judging
from sglang_cached_addon.dialects.openai import shares
from sglang_cached_addon.dialects.openai.choices import merge_usage
from sglang_cached_addon.dialects.openai.recording import NOT_OF_THE_HEAD, OF_EACH
from sglang_cached_addon.wire import sse

_T = TypeVar("_T")

_HEAD = (*OF_EACH, "model", "system_fingerprint", "service_tier")
"""The members of a JSON answer that each event of its stream has; others come with the last one."""


def member(value: Any, name: str, kind: type[_T]) -> _T:
    """A member of an object; an empty value where it has none of this type."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, kind) else kind()


class StoredChoice:
    """A parsed sample, from which the chunks of one choice are made."""

    def __init__(self, call: Call, sample: Recorded, index: int, rid: str | None) -> None:
        answer = orjson.loads(sample.answer)
        self.index = index
        self.answer: dict[str, Any] = {**answer, "id": rid} if rid else answer
        self.choice: dict[str, Any] = answer["choices"][0]
        self.steps: list[Any] | None = orjson.loads(sample.deltas) if sample.deltas else None
        self._late = _late(self.answer, self.steps)
        if self.steps and isinstance(self.steps[-1], dict):
            self.steps.pop()
        self.is_counted = bool(call.stream and call.stream.continuous_usage)
        self.wants_usage = bool(call.stream and call.stream.usage)
        self.usage: dict[str, Any] = member(answer, "usage", dict)

    def head(self, kind: str, created: Any) -> bytes:
        """JSON of the members that each chunk has beside its choices, without its end."""
        late = {name for names in self._late.values() for name in names}
        members = {
            n: v for n, v in self.answer.items() if n not in NOT_OF_THE_HEAD and n not in late
        }
        members["object"] = kind
        if "created" in members:
            members["created"] = created
        return orjson.dumps(members)[:-1]

    def tail(self) -> bytes:
        """JSON of the members that come with the choice's last chunk, each behind a comma: with
        those that came with the usage, where the client does not ask for that."""
        names = [*self._late["late"], *(() if self.wants_usage else self._late["usage"])]
        members = {name: self.answer[name] for name in names if self.answer.get(name) is not None}
        return b"," + orjson.dumps(members)[1:-1] if members else b""

    def usage_so_far(self, tokens: int) -> bytes:
        """The usage after so many tokens, for `continuous_usage_stats`."""
        prompt = member(self.usage, "prompt_tokens", int)
        reasoning = min(member(self.usage, "reasoning_tokens", int), tokens)
        return orjson.dumps(
            {
                "prompt_tokens": prompt,
                "total_tokens": prompt + tokens,
                "completion_tokens": tokens,
                "prompt_tokens_details": self.usage.get("prompt_tokens_details"),
                "reasoning_tokens": reasoning,
                "completion_tokens_details": {"reasoning_tokens": reasoning} if reasoning else None,
            }
        )

    def counts(self, lengths: Sequence[int], known: Sequence[int | None]) -> list[int]:
        """The tokens so far at each chunk: as they are `known`, or else guessed by the lengths of
        texts."""
        total = member(self.usage, "completion_tokens", int)
        least = 1 if total >= len(lengths) else 0
        parts = shares.apportion(total - least * len(lengths), lengths) if lengths else []
        guessed = accumulate(part + least for part in parts)
        return [g if k is None else k for g, k in zip(guessed, known, strict=True)]


def _late(answer: dict[str, Any], steps: list[Any] | None) -> dict[str, list[str]]:
    """The names of the members that do not come with each chunk: those of the last chunk (`late`),
    and those that are beside the usage (`usage`)."""
    if steps is None:
        known = (*_HEAD, *NOT_OF_THE_HEAD)
        return {"late": [name for name in answer if name not in known], "usage": []}
    end = steps[-1] if steps else None
    return end if isinstance(end, dict) else {"late": [], "usage": []}


def stored_choices(call: Call, samples: Sequence[Sequence[Recorded]]) -> Iterator[StoredChoice]:
    """The choices of an answer, of which some may not be there yet."""
    for i, pool in enumerate(samples):
        for j, sample in enumerate(pool):
            yield StoredChoice(call, sample, i * call.n + j, call.rids[i] if call.rids else None)


def script(
    call: Call,
    samples: Sequence[Sequence[Recorded]],
    chunks: Callable[[StoredChoice, Any], tuple[list[bytes], bytes | None]],
) -> Script:
    """The stream of these samples. `chunks` gives the deltas of a choice, and its finish where that
    is a chunk of its own. All have the time of the first one, as a server's do."""
    deltas, finishes, created = [], [], None
    for choice in stored_choices(call, samples):
        created = choice.answer.get("created") if created is None else created
        said, finish = chunks(choice, created)
        deltas.append(said)
        if finish:
            finishes.append(finish)
    return Script(tuple(deltas), finishes)


def usage(
    call: Call, samples: Sequence[Sequence[Recorded]], kind: str, *, nulls: bool
) -> bytes | None:
    """The event with the usage of a whole answer; with `nulls`, members that are null are kept."""
    answers = [[orjson.loads(sample.answer) for sample in pool] for pool in samples]
    flat = [answer for pool in answers for answer in pool]
    if not all(isinstance(answer.get("usage"), dict) for answer in flat):
        return None
    if len(flat) == 1:
        merged = flat[0]["usage"]
    else:
        merged = merge_usage([[answer["usage"] for answer in pool] for pool in answers])
    if not nulls:
        merged = {name: value for name, value in merged.items() if value is not None}
    first = samples[0][0]
    late = _late(flat[0], orjson.loads(first.deltas) if first.deltas else None)
    left_out = (*NOT_OF_THE_HEAD, *(name for name in late["late"] if name not in late["usage"]))
    head = {n: v for n, v in flat[0].items() if n not in left_out}
    if call.rids:
        head["id"] = call.rids[0]
    return sse.event(judging.dump({**head, "object": kind, "choices": [], "usage": merged}))


def renumber(event: Any, choices: Sequence[int], like: Recorded) -> None:
    """As `Dialect.renumber`."""
    for choice in event["choices"]:
        choice["index"] = choices[choice["index"]]
    if "created" in event:
        event["created"] = orjson.loads(like.answer).get("created")


def rename(event: Any, call: Call) -> bool:
    """As `Dialect.rename`."""
    index = event["choices"][0]["index"] if event["choices"] else 0
    event["id"] = call.rids[index]
    return True


def without_usage(event: bytes, value: Any) -> bytes:
    """A chunk without the usage so far, as the server writes one that nobody asks for."""
    choice = (value.get("choices") or [{}])[0]
    if "matched_stop" not in choice:  # not SGLang's
        others = {name: member for name, member in value.items() if name != "usage"}
        return sse.event(judging.dump(others))
    # It is the last member, and no text can look like it, for its quotes would be escaped.
    begin, found, _ = event.rpartition(b',"usage":{')
    if not found:
        return event
    delta = choice.get("delta")
    # The chunks that SGLang writes fast have no such member.
    has_none = isinstance(delta, dict) and "role" not in delta
    return begin + (b"}\n\n" if has_none else b',"usage":null}\n\n')
