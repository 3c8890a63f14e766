"""How two texts differ, word by word, for people to read.

    The sea is [-salty-]{+deep+} because rivers [...]

Pure. Of long texts only what is around the first differences is compared and shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import takewhile

CONTEXT = 12
"""So many words are shown before and behind what differs."""

MOST = 600
"""So many words of each text are compared, from the first that differs on."""

GAP = "[...]"

_WORD = re.compile(r"\s+|[^\s]+")


def word_diff(one: str, other: str) -> str:
    """What has gone, as `[-this-]`, and what has come, as `{+this+}`, with the words around."""
    if one == other:
        return one
    before, after = _WORD.findall(one), _WORD.findall(other)
    pairs = zip(before, after, strict=False)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, alike - 2 * CONTEXT)
    is_cut = max(len(before), len(after)) > alike + MOST
    before, after = before[start : alike + MOST], after[start : alike + MOST]
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    parts = [GAP, " "] if start else []
    for opcode in matcher.get_opcodes():
        parts += _part(opcode, before, after)
    return "".join([*parts, " ", GAP] if is_cut else parts).strip()


def _part(
    opcode: tuple[str, int, int, int, int], before: list[str], after: list[str]
) -> Iterator[str]:
    kind, a, b, c, d = opcode
    if kind != "equal":
        yield f"[-{''.join(before[a:b])}-]" if b > a else ""
        yield f"{{+{''.join(after[c:d])}+}}" if d > c else ""
        return
    same = before[a:b]
    width = 2 * CONTEXT  # words and what is between them
    head = same[:width] if a else []
    tail = same[-width:] if b < len(before) or d < len(after) else []
    if len(head) + len(tail) >= len(same):
        yield "".join(same)
    else:
        yield "".join([*head, f" {GAP} ", *tail])
