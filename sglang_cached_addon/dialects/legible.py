"""What people read of a stored call and of its samples: texts, and why a sample has ended.

Pure. A dialect tells by its `Display`; of one that has none, all texts are told, whatever they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sglang_cached_addon.dialects.base import Dialect, Json
from sglang_cached_addon.dialects.display import GENERAL, display_of, listed, members


def asked(dialect: Dialect | None, call: Json) -> list[str]:
    """The texts of a canonical call's prompt."""
    if (display := display_of(dialect)) is GENERAL:
        return list(_texts(call))
    return [passage.text for passage in display.passages(call) if passage.text]


def said(dialect: Dialect | None, answer: Any) -> str:
    """What a sample says."""
    if (display := display_of(dialect)) is GENERAL:
        return "\n".join(_texts(answer))
    reader = display.reader()
    reader.add(answer)
    return "\n".join(shown.text for shown in reader.samples())


def finish_reason(answer: Any) -> str | None:
    """Why a sample has ended, as its API says it; None where that is not found."""
    choice = members(next(iter(listed(members(answer).get("choices"))), None))
    finish = choice.get("finish_reason") or members(answer).get("stop_reason")
    native = members(members(answer).get("meta_info")).get("finish_reason")
    cut = members(members(answer).get("incomplete_details")).get("reason")
    found = finish or members(native).get("type") or cut or members(answer).get("status")
    return found if isinstance(found, str) else None


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value, but for the names of members."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _texts(member)
