"""What the tests of all streams share: streams recorded and replayed, and streams gone wrong."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.base import Generating
from sglang_cached_addon.wire import sse

SERVER = Server(SGLANG)


def parsed(event: bytes) -> Any:
    return orjson.loads(sse.data(event) or b"")


def worded(event: Any) -> bytes:
    return sse.event(orjson.dumps(event))


def record(
    dialect: Generating, body: dict[str, Any], events: Sequence[Any]
) -> Sequence[Generation]:
    """The samples of a stream; raises `Refused` where they may not be stored."""
    call = dialect.read(body)
    names = (f"minted{number}" for number in range(100))
    sent = dialect.trim(call, [call.n] * len(call.items), lambda: next(names), SERVER)
    recorder = dialect.record(call, sent)
    for event in events:
        recorder.add(copy.deepcopy(event))
    split = recorder.split()
    if split.refusal:
        raise Refused(split.refusal)
    return split.generations


def replay(dialect: Generating, body: dict[str, Any], samples: Sequence[Generation]) -> list[Any]:
    """The events of each choice, its finish being the last, and then that of the usage."""
    call = dialect.read(body)
    pools = [samples[i * call.n : (i + 1) * call.n] for i in range(len(call.items))]
    script, usage = dialect.script(call, pools), dialect.usage(call, pools)
    finishes = [[finish] for finish in script.finishes] or [[] for _ in samples]
    said = [events + end for events, end in zip(script.deltas, finishes, strict=True)]
    return [*said, [usage]] if usage else said


def place_of(event: Any) -> dict[str, Any]:
    """What has the index in an event: its choice, or the event itself."""
    found: dict[str, Any] = event["choices"][0] if event.get("choices") else event
    return found


def by_choice(events: Sequence[bytes]) -> list[list[bytes]]:
    """Events as `replay` sorts them."""
    found: dict[int, list[bytes]] = {}
    for event in events:
        value = parsed(event)
        is_usage = value.get("choices") == []
        found.setdefault(99 if is_usage else place_of(value).get("index", 0), []).append(event)
    return [found[key] for key in sorted(found)]


def recorded(pair: dict[str, Any]) -> list[bytes]:
    """The events of a recorded stream, but for the last, `[DONE]`."""
    return sse.Splitter().feed(pair["response"]["body"].encode())[:-1]


def mixed(streams: Sequence[Sequence[Any]], seed: int = 0) -> list[Any]:
    """The events of choices that take turns in some way."""
    rng, queues = random.Random(seed), [list(events) for events in streams]
    found = []
    while left := [queue for queue in queues if queue]:
        found.append(rng.choice(left).pop(0))
    return found


def but(events: Sequence[Any], place: int, **members: Any) -> list[Any]:
    """A stream with other members in one event's choice."""
    found = copy.deepcopy(list(events))
    place_of(found[place]).update(members)
    return found


def without(events: Sequence[Any], place: int, name: str) -> list[Any]:
    """A stream without a member of one event's choice."""
    found = copy.deepcopy(list(events))
    del place_of(found[place])[name]
    return found


def ended(events: Sequence[Any], index: int, finish: Any) -> list[Any]:
    """A stream in which a choice ends in another way."""
    found = copy.deepcopy(list(events))
    choices = [place_of(event) for event in found if event.get("choices") != []]
    (*_, last) = (choice for choice in choices if choice.get("index", 0) == index)
    last.get("meta_info", last)["finish_reason"] = finish
    return found


def told(events: Sequence[Any], prompts: Sequence[int] = (3,) * 9) -> list[Any]:
    """A stream whose chunks tell the usage of their choice so far: one token more with each;
    `prompts` are the tokens of each choice's prompt."""
    said: Counter[int] = Counter()
    found = copy.deepcopy(list(events))
    for event in found:
        for choice in event["choices"]:
            is_role = choice.get("delta", {}).get("role") == "assistant"
            if is_role or (choice["finish_reason"] and "delta" in choice):
                continue
            said[choice["index"]] += 1
            tokens, prompt = said[choice["index"]], prompts[choice["index"]]
            event["usage"] = {
                "prompt_tokens": prompt,
                "total_tokens": prompt + tokens,
                "completion_tokens": tokens,
                "prompt_tokens_details": None,
                "reasoning_tokens": 0,
                "completion_tokens_details": None,
            }
    return found


JUNK = [None, True, 0, -1, 7, 10**18, 1.5, "", "x", [], {}, [None], {"x": None}, [[]], "abort"]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each object or array in a value, with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value) if type(value) is list else 0)
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with a few members lost, doubled, or replaced."""
    value = copy.deepcopy(value)
    for _ in range(rng.randrange(1, 4)):
        found = list(places(value))
        if not found:
            break
        holder, key = rng.choice(found)
        kind = rng.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(rng.choice(holder)))
        elif kind == 2:
            other, name = rng.choice(found)
            holder[key] = copy.deepcopy(other.get(name) if isinstance(other, dict) else JUNK)
        else:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
    return value
