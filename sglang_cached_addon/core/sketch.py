"""Sketches: a few dozen numbers for a call, of which calls that are much alike have some in common.

Pure. A number stands for a member and its value, for a message, for how a long text begins and
ends, or for a few words near its end. Nothing that was asked can be read out of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from zlib import crc32

import orjson

LONGEST = 256 << 10
"""A call of more bytes is not taken apart, as that holds others up: it counts as one text."""

ENDS = (8, 32, 128, 512, 2048)
"""Of so many bytes the beginning and the end of a text have a number each."""

_MEMBERS = 32
"""So many members of an object, or elements at either end of a list, have numbers."""

_TEXT = 8
"""A text of fewer characters is only a value."""

_TEXTS = 3
"""So many texts of a call are looked at, the longest ones."""

_TAIL, _WORDS = 160, 6
"""In so many bytes at the end of a text, so many words have a number each, with their neighbours:
those that stay the same ones when others change."""


def sketch(dialect: str, content: bytes) -> frozenset[int]:
    """The numbers of a call of an API, given as canonical JSON."""
    api = crc32(dialect.encode())
    if len(content) > LONGEST:
        return frozenset((api, *_of_text(content, api, api)))
    call = orjson.loads(content)
    found, rest, texts = {api}, api, list[bytes]()
    for name, value in call.items():
        member = crc32(name.encode(), api)
        found.add(whole := crc32(orjson.dumps(value), member))
        found.update(_of_parts(value, member))
        if inner := list(_texts(value)):
            texts += {inner[-1], max(inner, key=len)}
        else:
            rest = crc32(b"%d" % whole, rest)
    found.add(crc32(b"rest", rest))
    for text in sorted(texts, key=len)[-_TEXTS:]:
        found.update(_of_text(text, api, rest))
    return frozenset(found)


def _of_parts(value: object, member: int) -> Iterator[int]:
    """The numbers of the members of an object, or of the elements of a list that are not mere
    numbers."""
    if isinstance(value, dict):
        for name, inner in islice(value.items(), _MEMBERS):
            yield crc32(orjson.dumps(inner), crc32(name.encode(), member))
    elif isinstance(value, list) and value and isinstance(value[0], dict | list | str):
        for inner in chain(value[: _MEMBERS // 4], value[_MEMBERS // 4 :][-_MEMBERS // 4 :]):
            yield crc32(orjson.dumps(inner), member)


def _texts(value: object) -> Iterator[bytes]:
    """The longer texts in a value, in their order; a list of numbers, as of tokens, is one."""
    if isinstance(value, str):
        if len(value) >= _TEXT:
            yield value.encode(errors="replace")
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        if len(value) >= _TEXT and isinstance(value[0], int):
            yield orjson.dumps(value).replace(b",", b" ")
        else:
            for inner in value:
                yield from _texts(inner)


def _of_text(text: bytes, api: int, rest: int) -> list[int]:
    """The numbers of a long text; `rest` stands for all else that is asked. Of two calls that
    differ in a text alone, those are nearest whose texts begin alike."""
    found = [crc32(text, api)]
    for size in ENDS:
        if len(text) < size:
            break
        begin = crc32(text[:size], api)
        found += (begin, begin ^ rest, crc32(text[-size:], ~api))
    return found + _of_words(text[-_TAIL:], api)


def _of_words(text: bytes, api: int) -> list[int]:
    words = text.split()
    if len(words) <= _WORDS:  # a language that has no spaces
        words = [text[i : i + 3] for i in range(len(text) - 2)]
    numbers = list(map(crc32, words))
    middles = sorted(range(1, len(numbers) - 1), key=numbers.__getitem__)[:_WORDS]
    return [
        (numbers[i - 1] * 3 + numbers[i] * 5 + numbers[i + 1] * 7 + api) & 0xFFFFFFFF
        for i in middles
    ]
