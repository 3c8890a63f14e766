"""What OpenAI's completions and chat streams have in common: envelopes, choices and usage.

Not a dialect. `Recorder` makes, of the chunks of a stream, the JSON answer that the same call
without `stream` would have had, which is then taken apart like any other; what a choice's
chunks add to it is for a `Tape` of the API. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import orjson

from sglang_cached_addon.core.call import (
    Call,
    Part,
    Recorded,
    Script,
    Split,
    Streaming,
    with_deltas,
)
from sglang_cached_addon.core.identity import SGLANG, UNKNOWN, VLLM, Server
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import base, openai, shares
from sglang_cached_addon.wire import sse

_T = TypeVar("_T")

UNSTREAMABLE = (
    "return_hidden_states",
    "return_routed_experts",
    "return_cached_tokens_details",
    "return_spec_tokens_details",
    "return_token_ids",
    "return_prompt_token_ids",
    "return_input_ids_in_sglext",
    "return_output_ids_in_sglext",
    "return_sampling_mask",
    "return_meta_info",
)
"""Fields that a stream answers in chunks of their own, or not at all."""

CHOICE = ("index", "logprobs", "finish_reason", "matched_stop")
"""What a choice has, JSON's and a chunk's of either API."""

_NOT_OF_THE_HEAD = ("choices", "usage", "metadata", "sglext")
_OF_EACH = ("id", "object", "created")
"""What each event may have its own of."""

_HEAD = (*_OF_EACH, "model", "system_fingerprint", "service_tier")
"""What is known to be of each event; what else JSON has comes at the end of a stream of it."""


def streaming(body: dict[str, Any]) -> Streaming | None:
    """What is wanted of a streamed answer, if one is; raises `Refused`."""
    if not base.is_stream(body, UNSTREAMABLE):
        return None
    options = body.get("stream_options") or {}
    known = ("include_usage", "continuous_usage_stats")
    if not isinstance(options, dict) or any(
        name not in known or type(value) not in (bool, base.NULL) for name, value in options.items()
    ):
        raise Refused(Reason.MALFORMED)
    return Streaming(*(bool(options.get(name)) for name in known))


def ask_for_usage(call: Call, body: dict[str, Any], server: Server, *, is_one: bool) -> bool:
    """Makes upstream tell what JSON answers, and other streams, will want to know: the usage, and
    of each choice its own. Whether that is told to nobody else."""
    if not call.stream:
        return False
    options = body["stream_options"] = {
        **(body.get("stream_options") or {}),
        "include_usage": True,
    }
    counts = not is_one and server.engine in (SGLANG, VLLM) and not call.stream.continuous_usage
    if counts:
        options["continuous_usage_stats"] = True
    return counts


def without_usage(event: bytes, value: Any) -> bytes:
    """A chunk without the usage so far, as the server words one where nobody asks for that. The
    usage is its last member; between quotes, there is none like it."""
    begin, found, _ = event.rpartition(b',"usage":{')
    if not found:
        return event
    choices = value.get("choices")
    delta = choices[0].get("delta") if choices else None
    # The chunks that SGLang writes fast have no such member.
    has_none = isinstance(delta, dict) and "role" not in delta
    return begin + (b"}\n\n" if has_none else b',"usage":null}\n\n')


class Tape(Protocol):
    """The chunks of one choice."""

    rows: int
    """Of log-probabilities."""
    is_finished: bool

    def add(self, choice: dict[str, Any], tokens: int | None) -> bool:
        """Takes a chunk's choice, and its tokens so far if they are told; whether it is nothing
        but an end. Raises `Refused`."""

    def choice(self) -> dict[str, Any]:
        """What a call without `stream` would have got."""

    def steps(self) -> list[Any]:
        """Where the chunks began and ended."""


def refuse_unknown(choice: dict[str, Any], known: Set[str], *, is_end: bool) -> None:
    """Raises `Refused` for a chunk's choice, or its delta, that says what is not known to be kept.
    Its end may tell facts of the whole, but no lists: these had parts before, or are too late."""
    if choice.keys() <= known:
        return
    for name, value in choice.items():
        if name not in known and value is not None and (not is_end or type(value) in (list, dict)):
            raise Refused(Reason.UNREADABLE)


def member(value: Any, name: str, kind: type[_T]) -> _T:
    """A member of an object; an empty value where there is none of this kind."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, kind) else kind()


class Recorder:
    """Sorts the chunks of a stream by choice."""

    def __init__(
        self,
        tapes: Sequence[Tape],
        kind: str,
        split: Callable[[Any, openai.Told], Split],
        *,
        server: Server = UNKNOWN,
        wants_rows: bool = False,
    ) -> None:
        """`kind` is the `object` of a JSON answer; `split` takes one apart, with what is told of
        each choice. `wants_rows`: JSON has log-probabilities of every token."""
        self._tapes = tapes
        self._kind = kind
        self._split = split
        self._server = server
        self._wants_rows = wants_rows
        self._usages: list[dict[str, Any] | None] = [None] * len(tapes)
        self._late: list[dict[str, Any]] = [{} for _ in tapes]
        """Members that came after the first event, by the choice that they came with."""
        self._last: dict[str, Any] = {}
        """Those that came with the usage."""
        self._head: dict[str, Any] = {}
        self._ids = [""] * len(tapes)
        self._usage: dict[str, Any] | None = None
        self._is_error = False

    def add(self, event: Any) -> tuple[Part, int]:
        if not isinstance(event, dict):
            raise Refused(Reason.UNREADABLE)
        if event.get("error") is not None:
            self._is_error = True
            return Part.ERROR, 0
        choices, usage = event.get("choices"), event.get("usage")
        if not self._head:
            self._head = {
                name: value for name, value in event.items() if name not in _NOT_OF_THE_HEAD
            }
        if choices == [] and isinstance(usage, dict) and event.get("sglext") is None:
            self._usage = usage
            self._last = self._news(event)
            return Part.USAGE, 0
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            raise Refused(Reason.UNREADABLE)
        index, rid = choices[0].get("index"), event.get("id")
        if type(index) is not int or not 0 <= index < len(self._tapes) or not isinstance(rid, str):
            raise Refused(Reason.UNREADABLE)
        self._ids[index] = self._ids[index] or rid
        self._late[index].update(self._news(event))
        tokens = None
        if isinstance(usage, dict):
            tokens, self._usages[index] = usage.get("completion_tokens"), usage
        is_finish = self._tapes[index].add(choices[0], tokens if type(tokens) is int else None)
        if is_finish:
            # SGLang's has the id of whichever choice spoke last.
            event["id"] = self._ids[index]
        return (Part.FINISH if is_finish else Part.DELTA), index

    def _news(self, event: dict[str, Any]) -> dict[str, Any]:
        """The members of an event that the first one did not have like this."""
        return {
            name: value
            for name, value in event.items()
            if value is not None
            and name not in _OF_EACH
            and name not in _NOT_OF_THE_HEAD
            and self._head.get(name) != value
        }

    def split(self) -> Split:
        if self._is_error:
            raise Refused(Reason.ERROR)
        if not all(tape.is_finished for tape in self._tapes):
            raise Refused(Reason.UNFINISHED)
        if self._usage is None:
            raise Refused(Reason.NO_USAGE)
        total = self._usage.get("completion_tokens")
        is_short = self._wants_rows and sum(tape.rows for tape in self._tapes) != total
        choices = [{**tape.choice(), "index": k} for k, tape in enumerate(self._tapes)]
        answer = {
            **self._head,
            "object": self._kind,
            "choices": choices,
            "usage": _json_usage(self._usage),
            **openai.metadata(self._server),
        }
        members = [{**late, **self._last} for late in self._late]
        split = self._split(answer, openai.Told(self._ids, self._usages, members))
        if is_short and split.refusal in (None, Reason.SHARED_USAGE):
            split = replace(split, refusal=Reason.LOST_LOGPROBS)
        pairs = zip(self._tapes, self._late, strict=True)
        return with_deltas(split, [self._deltas(tape.steps(), late) for tape, late in pairs])

    def _deltas(self, steps: list[Any], late: dict[str, Any]) -> bytes:
        """Steps, and the names of the members that do not come with each chunk."""
        if late or self._last:
            steps = [*steps, {"late": list(late), "usage": list(self._last)}]
        return base.dump(steps)


def _json_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """SGLang's usage with the members that its stream leaves out where they are null."""
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


class Sequel:
    """What the chunks of one choice are made of: its sample, parsed."""

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
        """The chunk's members but for its choices; open at the end."""
        late = {name for names in self._late.values() for name in names}
        members = {
            n: v for n, v in self.answer.items() if n not in _NOT_OF_THE_HEAD and n not in late
        }
        members["object"] = kind
        if "created" in members:
            members["created"] = created
        return orjson.dumps(members)[:-1]

    def tail(self) -> bytes:
        """The members that come with the choice's last chunk, or with the usage that the client
        does not want to see; each behind a comma."""
        names = [*self._late["late"], *(() if self.wants_usage else self._late["usage"])]
        members = {name: self.answer[name] for name in names if self.answer.get(name) is not None}
        return b"," + orjson.dumps(members)[1:-1] if members else b""

    def usage_so_far(self, tokens: int) -> bytes:
        """`continuous_usage_stats`, after so many tokens."""
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
        """Tokens so far at each chunk; where the recording does not tell, by lengths of text."""
        total = member(self.usage, "completion_tokens", int)
        least = 1 if total >= len(lengths) else 0
        parts = shares.apportion(total - least * len(lengths), lengths) if lengths else []
        guessed = accumulate(part + least for part in parts)
        return [g if k is None else k for g, k in zip(guessed, known, strict=True)]


def _late(answer: dict[str, Any], steps: list[Any] | None) -> dict[str, list[str]]:
    """The names of the members that do not come with each chunk: those of the last chunk (`late`),
    and those that are beside the usage (`usage`)."""
    if steps is None:
        known = (*_HEAD, *_NOT_OF_THE_HEAD)
        return {"late": [name for name in answer if name not in known], "usage": []}
    end = steps[-1] if steps else None
    return end if isinstance(end, dict) else {"late": [], "usage": []}


def sequels(call: Call, samples: Sequence[Sequence[Recorded]]) -> Iterator[Sequel]:
    """All choices of an answer, or those that there are of it."""
    for i, pool in enumerate(samples):
        for j, sample in enumerate(pool):
            yield Sequel(call, sample, i * call.n + j, call.rids[i] if call.rids else None)


def script(
    call: Call,
    samples: Sequence[Sequence[Recorded]],
    chunks: Callable[[Sequel, Any], tuple[list[bytes], bytes | None]],
) -> Script:
    """`chunks` gives a choice's deltas, and its finish if that is a chunk of its own. All say
    that they were created when the first was, as a server's do."""
    deltas, finishes, created = [], [], None
    for sequel in sequels(call, samples):
        created = sequel.answer.get("created") if created is None else created
        said, finish = chunks(sequel, created)
        deltas.append(said)
        if finish:
            finishes.append(finish)
    return Script(tuple(deltas), finishes)


def usage(
    call: Call, samples: Sequence[Sequence[Recorded]], kind: str, *, nulls: bool
) -> bytes | None:
    """The usage event of a whole answer; `nulls`: with the members that have no value."""
    answers = [[orjson.loads(sample.answer) for sample in pool] for pool in samples]
    flat = [answer for pool in answers for answer in pool]
    if not all(isinstance(answer.get("usage"), dict) for answer in flat):
        return None
    if len(flat) == 1:
        merged = flat[0]["usage"]
    else:
        merged = openai.merge_usage([[answer["usage"] for answer in pool] for pool in answers])
    if not nulls:
        merged = {name: value for name, value in merged.items() if value is not None}
    first = samples[0][0]
    late = _late(flat[0], orjson.loads(first.deltas) if first.deltas else None)
    left_out = (*_NOT_OF_THE_HEAD, *(name for name in late["late"] if name not in late["usage"]))
    head = {n: v for n, v in flat[0].items() if n not in left_out}
    if call.rids:
        head["id"] = call.rids[0]
    return sse.event(base.dump({**head, "object": kind, "choices": [], "usage": merged}))


def renumber(event: Any, choices: Sequence[int], like: Recorded) -> None:
    """As `Dialect.renumber`."""
    for choice in event["choices"]:
        choice["index"] = choices[choice["index"]]
    if "created" in event:
        event["created"] = orjson.loads(like.answer).get("created")


def rename(event: Any, rids: Sequence[str]) -> None:
    """As `Dialect.rename`."""
    index = event["choices"][0]["index"] if event["choices"] else 0
    event["id"] = rids[index]
