"""Each row's own part of a usage."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.call import UpstreamCall
from sglang_cached_addon.dialects import prompt_tokens
from tests.tables import each

USAGES: list[tuple[Any, tuple[int, ...], list[Any], list[int], bool]] = [
    # a usage, the tokens that are known, the inputs, the tokens of each, and whether that is exact
    ({"prompt_tokens": 5, "total_tokens": 5}, (2, 3), ["a", "bb"], [2, 3], True),
    ({"prompt_tokens": 5}, (2, 3), ["a", "bb"], [2, 3], True),
    ({"prompt_tokens": 5, "total_tokens": 5, "completion_tokens": 0}, (), [[1], [2, 3, 4, 5]],
     [1, 4], True),
    ({"prompt_tokens": 5, "total_tokens": 5}, (), ["a", "bbbb"], [1, 4], False),
    ({"prompt_tokens": 5, "total_tokens": 5}, (2, 2), ["a", "bbbb"], [1, 4], False),
    ({"prompt_tokens": 5, "total_tokens": 6}, (2, 3), ["a", "bbbb"], [1, 4], False),
    ({"prompt_tokens": 5, "total_tokens": 5, "cached": 1}, (2, 3), ["a", "bbbb"], [1, 4], False),
    ({"prompt_tokens": 5, "total_tokens": 5, "cached": 1}, (), ["a"], [5], True),
]  # fmt: skip


def merged(rows: list[Any]) -> Any:
    total = prompt_tokens.Total()
    for row in rows:
        total.add(row)
    return total.usage


@each(("usage", "known", "inputs", "tokens", "is_exact"), USAGES)
def test_share(
    usage: Any, known: tuple[int, ...], inputs: list[Any], tokens: list[int], is_exact: bool
) -> None:
    """A share is exact where all are known and come to what the answer says; whatever the shares
    are, together they are that."""
    sent = UpstreamCall({}, tuple(range(len(inputs))), 1, tokens=known)
    rows, found = prompt_tokens.share(usage, sent, inputs)
    assert found is is_exact
    assert [row["prompt_tokens"] for row in rows] == tokens
    assert merged(rows) == usage


@each("usage", [None, "x", {"prompt_tokens": "x"}, {}])
def test_usage_that_is_none(usage: Any) -> None:
    """What tells nothing is shown as it came."""
    sent = UpstreamCall({}, (0, 1), 1)
    rows, _ = prompt_tokens.share(usage, sent, ["a", "b"])
    assert merged(rows) == usage
