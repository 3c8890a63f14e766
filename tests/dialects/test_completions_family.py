"""Families of completions: what is particular to these."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.completions import DIALECT
from tests.dialects.openai.test_family import BODY, answer
from tests.tables import each

FAMILY = DIALECT.family
ROWS = {"tokens": ["a", " b", " c", " d"], "token_logprobs": [-1.0, -2.0, -3.0, -4.0],
        "text_offset": [-1] * 4, "top_logprobs": []}  # fmt: skip


@each(
    ("more", "scores"),
    [
        ({"logprobs": 0}, b'{"logprobs":0}'),
        ({"logprobs": 2}, b'{"logprobs":2}'),
        ({"logprobs": None}, b""),
        ({"logprobs": True}, None),
        ({"logprobs": "2"}, None),
        ({"top_logprobs": 2}, None),
    ],
)
def test_scores(more: dict[str, Any], scores: bytes | None) -> None:
    """What upstream may refuse belongs to no family."""
    variant = FAMILY.variant({**BODY[DIALECT], **more})
    assert (variant and variant.scores) == scores


def test_best_of_one() -> None:
    """The best of one is that one, of whatever limit."""
    assert FAMILY.variant({**BODY[DIALECT], "best_of": 1})


def test_rows() -> None:
    """The log-probabilities tell the texts of tokens, too, and are cut with these."""
    found = answer(DIALECT, logprobs=ROWS)
    assert FAMILY.text_at(found, None, 3) == "a b c"
    assert FAMILY.text_at(found, [[1, 1], [2, 1], [4, 2]], 2) == "a b"
    FAMILY.cut(found, None, 3, "a b c")
    assert found["choices"][0]["logprobs"] == {name: rows[:3] for name, rows in ROWS.items()}


def test_without_scores() -> None:
    found = answer(DIALECT, logprobs=ROWS)
    assert FAMILY.without_scores(found, [[1, 1], 2, [4, 2, 4]]) == [[1, None], 2, [4, None, 4]]
    assert found == answer(DIALECT)
