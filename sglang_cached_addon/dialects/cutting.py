"""What dialects share for cutting a sample of a greedy call at a token.

Pure: takes texts, and where events ended in them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any


def has_others(body: Mapping[str, Any], known: Collection[str]) -> bool:
    """Whether a body, or a part of one, has other fields that ask for something."""
    unknown = [value for name, value in body.items() if name not in known]
    return any(value is not None and value is not False for value in unknown)


def text_at(text: str, marks: Iterable[tuple[int, int]], count: int) -> str | None:
    """The text of the first tokens of an answer; None where it is not known.

    `marks` are characters and tokens so far, at the end of each event, in ascending order. A server
    holds back a token that ends within a character, and then whatever stands before it in the same
    word. All of that comes with the next text, which then has a character beyond ASCII."""
    marks = list(marks)
    ends = [characters for characters, tokens in marks if tokens == count]
    if not ends:
        return None
    end = ends[-1]
    following = next((c for c, tokens in marks if tokens > count and c > end), len(text))
    return text[:end] if text[end:following].isascii() else None


def with_end(versions: Any, count: int) -> Any:
    """The spans of weights of an answer, as those of its first tokens."""
    if isinstance(versions, list) and versions and isinstance(versions[0], dict):
        return [{**versions[0], "end": count}]
    return versions
