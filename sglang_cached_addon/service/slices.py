"""Answers that are too large to be read in one go: read a sample at a time.

Pure. To read JSON holds up everything else in the process, at some 100 MB a second, and takes ten
times its size in memory; here only one sample is read at once, so that others have their turn in
between (it belongs into a thread), and of each nothing stays but what it is kept as, or, where all
share an answer, a light form of it. Where a sample ends, its braces tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Split, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import vectors
from sglang_cached_addon.dialects.base import Dialect
from sglang_cached_addon.dialects.judging import dump

LARGE = 2 << 20
"""Bytes of an answer that is read in one go, in 20 ms or so."""

LARGEST = 480_000
"""Values of a sample, some 4 MB of log-probabilities: to read them takes up to 90 ms where other
work goes on beside it, and others wait for that."""

_HEAD = 64 << 10
"""Where the samples must have begun."""

TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[{}]', re.DOTALL)
"""Texts, and the braces that are in none. It never goes back; a text that does not end is one."""

_HOLDERS = ("choices", "data")
"""The members that have the samples of an answer that is no list itself."""

Pause = Callable[[], object]
"""A function that lets others have their turn. It is called behind each sample."""


class Odd(Exception):
    """An answer that cannot be read in slices, and has to be read whole."""


def split(
    dialect: Dialect, call: Call, sent: UpstreamCall, body: bytes, largest: float, pause: Pause
) -> Split:
    """As `Dialect.split`, of a large body that was not read yet. Raises `Refused`, also where a
    sample has more values than `largest`."""
    if body.startswith(b"[") and (call.batched or sent.n > 1):
        with suppress(Odd):
            return _split_list(dialect, call, sent, Samples(body, largest, pause))
    return dialect.split(call, sent, read(body, sent.added, largest, pause))


def read(body: bytes, unseen: Collection[str], largest: float, pause: Pause) -> Any:
    """A large answer to be split, and to be written again: parsed, but where it has choices, these
    are light. Nobody sees their `unseen` members. Raises `Refused`, as `split` does."""
    try:
        samples = Samples(body, largest, pause)
        if not samples.is_list:
            found = [_light(sample, unseen) for sample in samples]
            return {**samples.envelope(), samples.holder: found}
    except Odd:
        pass
    _bound(body, 0, len(body), largest)
    return parse(body)


def parse(body: bytes) -> Any:
    """Raises `Refused`."""
    try:
        return orjson.loads(body)
    except ValueError:
        raise Refused(Reason.UNREADABLE) from None


def _bound(body: bytes, start: int, end: int, largest: float) -> None:
    """Raises `Refused` where there is too much between: texts are read at once, but not values."""
    if body.count(b",", start, end) > largest:
        raise Refused(Reason.LARGE_SAMPLE)


def _split_list(dialect: Dialect, call: Call, sent: UpstreamCall, samples: Samples) -> Split:
    """Each is the whole answer to a call for one."""
    one = replace(call, batched=False, n=1)
    generations: list[Generation] = []
    refusal, versions = None, frozenset[str]()
    count, seen = 0, set[int]()
    for sample in samples:
        if count == sent.total:
            raise Refused(Reason.UNREADABLE)
        item = sent.order[count // sent.n]
        count += 1
        if call.is_pure and item in seen:
            continue
        seen.add(item)
        part = dialect.split(one, replace(sent, order=(item,), n=1, skip=()), sample)
        del sample  # before the next one is read
        generations += part.generations
        refusal = refusal or part.refusal
        versions |= part.versions
    if count < sent.total:
        raise Refused(Reason.UNREADABLE)
    return Split(tuple(generations), refusal, versions)


def _light(choice: Any, unseen: Collection[str]) -> Any:
    """A choice with log-probabilities that are only to be handed on, as they take most of the room;
    and of what nobody sees, only how much it is. All that tells tokens or weights is left. A vector
    is as it will be kept."""
    if not isinstance(choice, dict):
        return choice
    vectors.packed(choice)
    for name in unseen:
        if isinstance(choice.get(name), list):
            choice[name] = [None] * len(choice[name])
    is_counted = _is_counted(choice)
    for name in ("logprobs", "meta_info"):
        if isinstance(members := choice.get(name), dict):
            is_seen = name not in unseen
            choice[name] = {
                n: _packed(n, value, is_seen, is_counted) for n, value in members.items()
            }
    return choice


def _is_counted(choice: dict[str, Any]) -> bool:
    """Whether its tokens are told elsewhere than by its log-probabilities."""
    meta = choice.get("meta_info")
    ids = (choice.get("token_ids"), choice.get("response_token_ids"))
    is_told = isinstance(meta, dict) and type(meta.get("completion_tokens")) is int
    return is_told or any(isinstance(some, list) for some in ids)


def _packed(name: str, value: Any, is_seen: bool, is_counted: bool) -> Any:
    """A member of such an object: JSON, if it is a list. But where nothing else tells how many
    tokens there are, `tokens` (of completions) and `content` (of chats) have as many members."""
    if not isinstance(value, list) or name == "weight_versions":
        return value
    if not is_seen:
        return None
    if name == "tokens" and not is_counted:
        return value
    if name == "content" and not is_counted:
        return [orjson.Fragment(dump(row)) for row in value]
    return orjson.Fragment(dump(value))


class Samples:
    """The samples of an answer, in its order. Raises `Odd` where they cannot be told apart."""

    def __init__(self, body: bytes, largest: float, pause: Pause) -> None:
        self._body = body
        self._largest, self._pause = largest, pause
        self.is_list = body.startswith(b"[")
        self.holder = ""
        """The member that has them, where the answer is no list."""
        self._start = 1
        if not self.is_list:
            begins = ((body.find(b'"%b":[{' % n.encode(), 0, _HEAD), n) for n in _HOLDERS)
            found = next(((begin, name) for begin, name in begins if begin >= 0), None)
            if not found:
                raise Odd
            begin, self.holder = found
            self._start = begin + len(self.holder) + 4
        self._end = 0

    def __iter__(self) -> Iterator[Any]:
        for start, end in self.places():
            _bound(self._body, start, end, self._largest)
            try:
                yield orjson.loads(memoryview(self._body)[start:end])
            except ValueError:
                raise Odd from None
            self._pause()

    def places(self) -> Iterator[tuple[int, int]]:
        """Where each sample begins and ends."""
        start = self._start
        while not self._end:
            end = self._find_end(start)
            yield start, end
            if self._body.startswith(b"]", end):
                self._end = end
            start = end + 1
        if self.is_list and self._body[self._end + 1 :].strip():
            raise Odd

    def _find_end(self, start: int) -> int:
        """Where the sample ends that begins there."""
        depth = 0
        for token in TOKEN.finditer(self._body, start):
            brace = token[0]
            if brace == b"{":
                depth += 1
            elif brace == b"}":
                depth -= 1
            if not depth:
                if self._body[token.end() : token.end() + 1] not in (b",", b"]"):
                    raise Odd
                return token.end()
        raise Odd

    def envelope(self) -> dict[str, Any]:
        """What is around the samples, once they are read."""
        try:
            found = orjson.loads(self._body[: self._start] + self._body[self._end :])
        except ValueError:
            raise Odd from None
        if not isinstance(found, dict) or found.get(self.holder) != []:
            raise Odd
        return found
