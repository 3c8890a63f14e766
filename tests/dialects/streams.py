"""What the tests of all streams share: events in words, and events gone wrong."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import Generation
from sglang_cached_addon.core.identity import SGLANG, Server
from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.wire import sse

SERVER = Server(SGLANG)


def parsed(event: bytes) -> Any:
    return orjson.loads(sse.data(event) or b"")


def worded(event: Any) -> bytes:
    return sse.event(orjson.dumps(event))


def record(dialect: Dialect, body: dict[str, Any], events: Sequence[Any]) -> Sequence[Generation]:
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
