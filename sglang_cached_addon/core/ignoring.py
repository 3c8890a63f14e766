"""What users have left out of keys: rules, each with paths into bodies and a regular expression.

What the expression matches in the strings at a path is cut out of what a call is named by, never of
what is sent. In its place stands a mark that no client can write, which names the expression: so
two calls have one name only if they are equal but for what the same expressions match, at the same
places. Pure: the clock is an argument. Knows no API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from sglang_cached_addon.core.json_path import Location, Path, TooMuch
from sglang_cached_addon.core.regex import Clock, Regex

APART = frozenset({"model", "lora_path", "lora_id", "cache_salt", "extra_key"})
"""Fields of which nothing is left out, whatever a path leads to: they choose who answers, or who
has a cache of their own."""

SHOW_PROMPT = (
    "echo",
    "logprob_start_len",
    "prompt_logprobs",
    "return_hidden_states",
    "return_indexer_topk",
    "return_input_ids_in_sglext",
    "return_prompt_token_ids",
    "return_routed_experts",
    "return_token_ids",
)
"""Fields with which an answer shows the prompt, or what the model has made of it: with these,
nothing is left out of a call's key."""

SECONDS = 0.1
"""How long rules may take for a body: as long as reading it may."""

_TOKENS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
"""Characters that stand for nothing, and that no text has but by chance. One that a body has not
stands for what is cut out, while the body is read."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is left out of keys."""

    name: str
    paths: tuple[Path, ...]
    regex: Regex
    apis: frozenset[str] = frozenset()
    """The names of the APIs that it is for; empty for all that generate."""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": [path.text for path in self.paths],
            "regex": self.regex.text,
            "apis": sorted(self.apis) or None,
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out of one item of a call."""

    rules: tuple[str, ...] = ()
    """The names of the rules that it was left out by."""
    origin: bytes = b""
    """16 bytes that name it; empty if it is nothing."""


NOTHING = LeftOut()


@dataclass(frozen=True, slots=True)
class _Cut:
    """What was cut out at one place."""

    rules: tuple[Rule, ...]
    text: str

    @property
    def mark(self) -> bytes:
        """What stands there in a string in JSON. An escape of what JSON need not escape, so that it
        is not in what is written of any body."""
        regexes = orjson.dumps([rule.regex.text for rule in self.rules])
        return b"\\u2026%b" % sha256(regexes).hexdigest()[:16].encode()


@dataclass(frozen=True, slots=True)
class Reduction:
    """A body of which something is cut out."""

    body: dict[str, Any]
    """The body, in which tokens with numbers between them stand for what was cut out."""
    _token: bytes
    _cuts: Sequence[_Cut]

    def read(self, item: bytes) -> tuple[bytes, LeftOut]:
        """The canonical content of an item of the body as it is named, and what was left out of
        it."""
        parts = item.split(self._token)
        if len(parts) == 1:
            return item, NOTHING
        cuts = [self._cuts[int(number)] for number in parts[1::2]]
        parts[1::2] = [cut.mark for cut in cuts]
        names = dict.fromkeys(rule.name for cut in cuts for rule in cut.rules)
        texts = orjson.dumps([cut.text for cut in cuts])
        return b"".join(parts), LeftOut(tuple(names), sha256(texts).digest()[:16])


_Found = tuple[int, int, int]
"""Where a rule matches, in bytes, and its number."""


class Ignoring:
    """The rules that are set."""

    def __init__(self, rules: Sequence[Rule], clock: Clock, late: Callable[[Rule], object]) -> None:
        """`late` is told of a rule that takes too long for a body, which then keeps its key."""
        self.rules, self._clock, self._late = rules, clock, late

    def reduce(self, api: str, body: dict[str, Any], items: Sequence[bytes]) -> Reduction | None:
        """A body without what the rules match; None where they match nothing. `items` are what it
        comes to as it is."""
        if any(_is_asked(body[name]) for name in SHOW_PROMPT if name in body):
            return None
        found = self._find(api, body)
        if not found:
            return None
        encoded = ((token, token.encode()) for token in _TOKENS)
        free = (token for token, code in encoded if not any(code in item for item in items))
        if (token := next(free, None)) is None:
            return None
        cuts: list[_Cut] = []
        texts = {at: self._cut(text, spans, token, cuts) for at, (text, spans) in found.items()}
        return Reduction(_with(body, texts), token.encode(), cuts)

    def _find(self, api: str, body: dict[str, Any]) -> dict[Location, tuple[bytes, list[_Found]]]:
        """The strings in which the rules match something, and where."""
        found: dict[Location, tuple[bytes, list[_Found]]] = {}
        end = self._clock() + SECONDS
        for number, rule in enumerate(self.rules):
            if rule.apis and api not in rule.apis:
                continue
            try:
                for location, data, start, stop in self._matches(rule, body, end):
                    found.setdefault(location, (data, []))[1].append((start, stop, number))
            except TooMuch:
                self._late(rule)
                return {}
        return found

    def _matches(
        self, rule: Rule, body: dict[str, Any], end: float
    ) -> Iterator[tuple[Location, bytes, int, int]]:
        """Where a rule matches, with the strings. Raises `TooMuch`, also at the `end` of time."""
        for location, text in (one for path in rule.paths for one in path.strings(body)):
            if location[0] in APART:
                continue
            data = text.encode()
            if rule.regex.is_slow(data, self._clock):
                raise TooMuch
            for start, stop in rule.regex.spans(data):
                yield location, data, start, stop
                if self._clock() > end:
                    raise TooMuch
            if self._clock() > end:
                raise TooMuch

    def _cut(self, text: bytes, spans: list[_Found], token: str, cuts: list[_Cut]) -> str:
        """A string with tokens in place of what is matched; what touches is one cut."""
        parts, end = list[str](), 0
        for start, stop, numbers in _joined(spans):
            rules = tuple(self.rules[number] for number in sorted(numbers))
            parts += [text[end:start].decode(), f"{token}{len(cuts)}{token}"]
            cuts.append(_Cut(rules, text[start:stop].decode()))
            end = stop
        return "".join([*parts, text[end:].decode()])


def _with(body: dict[str, Any], texts: Mapping[Location, str]) -> dict[str, Any]:
    """A body with other texts; what is not on the way to one of these is not copied."""
    changed = dict(body)
    copies: dict[Location, Any] = {}
    for location, text in texts.items():
        holder: Any = changed
        for depth, key in enumerate(location[:-1], 1):
            way = location[:depth]
            if way not in copies:
                copies[way] = holder[key] = holder[key].copy()
            holder = copies[way]
        holder[location[-1]] = text
    return changed


def _joined(spans: Iterable[_Found]) -> list[tuple[int, int, set[int]]]:
    """The same places in their order, in which those that touch or overlap are one."""
    joined: list[tuple[int, int, set[int]]] = []
    for start, end, number in sorted(spans):
        if joined and start <= joined[-1][1]:
            begun, before, numbers = joined[-1]
            joined[-1] = (begun, max(before, end), numbers | {number})
        else:
            joined.append((start, end, {number}))
    return joined


def _is_asked(value: Any) -> bool:
    """Whether such a field asks for something: -1 is the end of a prompt."""
    return not (value is None or value is False or value == -1)
