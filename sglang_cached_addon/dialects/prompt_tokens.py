"""Each row's own part of a usage that is told for all together.

Pure. A share is exact where the tokens of each row are known, and come to what the answer says.
Others are by length, with the total kept: that will do for the answer as a whole, and for nothing
that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import UpstreamCall
from sglang_cached_addon.dialects.openai.shares import apportion

_TOTALS = ("prompt_tokens", "total_tokens")


def share(usage: Any, sent: UpstreamCall, inputs: Sequence[Any]) -> tuple[list[Any], bool]:
    """Each row's own `usage`, and whether all are exact; `inputs` are what was sent of each: texts,
    lists of ids, or None."""
    count = len(inputs)
    if not isinstance(usage, dict) or count == 1:
        return [usage] * count, True
    total = usage.get("prompt_tokens")
    if type(total) is not int:
        return [usage] + [None] * (count - 1), False
    parts = _counts(sent, inputs)
    others = {name: value for name, value in usage.items() if name not in _TOTALS}
    is_exact = bool(parts) and sum(parts) == total == usage.get("total_tokens", total)
    is_exact = is_exact and not any(others.values())
    if not is_exact:
        parts = apportion(total, [len(each or "") for each in inputs])
    totals = [name for name in _TOTALS if name in usage]
    rows = [{**usage, **dict.fromkeys(totals, part)} for part in parts]
    if not is_exact:  # what is left over is the first row's, so that they come to it together
        rows[0] |= {name: usage[name] - sum(parts[1:]) for name in totals}
        rows[1:] = [{**row, **dict.fromkeys(others)} for row in rows[1:]]
    return rows, is_exact


def _counts(sent: UpstreamCall, inputs: Sequence[Any]) -> Sequence[int]:
    """How many tokens each row has; empty where that is not known."""
    if are_ids(inputs):
        return [len(each) for each in inputs]
    return sent.tokens if len(sent.tokens) == len(inputs) else ()


def are_ids(inputs: Sequence[Any]) -> bool:
    """Whether these are lists of ids, whose tokens anybody can count."""
    return all(isinstance(each, list) and set(map(type, each)) <= {int} for each in inputs)


class Total:
    """The usage of an answer, from those of its rows."""

    def __init__(self) -> None:
        self.usage: Any = None

    def add(self, usage: Any) -> None:
        """Takes the next one."""
        self.usage = _sum(self.usage, usage)


def _sum(one: Any, other: Any) -> Any:
    """Numbers are summed, in objects too; of other values, the first one counts that is any."""
    if type(one) is int and type(other) is int:
        return one + other
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: _sum(one.get(name), other.get(name)) for name in {**one, **other}}
    return other if one is None else one
