"""Families of chats: what is particular to these."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.policy import Refused
from sglang_cached_addon.dialects.chat import DIALECT
from tests.dialects.openai.test_family import BODY, STEPS, answer
from tests.tables import each

FAMILY = DIALECT.family
ROWS = [{"token": token, "logprob": -0.5} for token in ("a", " b", " c", " d")]
SCORED = answer(DIALECT, logprobs={"content": ROWS})


@each(
    ("more", "scores"),
    [
        ({"logprobs": True}, b'{"logprobs":true}'),
        ({"logprobs": True, "top_logprobs": 2}, b'{"logprobs":true,"top_logprobs":2}'),
        ({"logprobs": False}, b""),
        ({"logprobs": False, "top_logprobs": None}, b""),
        ({"top_logprobs": 2}, None),
        ({"logprobs": None}, None),
        ({"logprobs": 1}, None),
    ],
)
def test_scores(more: dict[str, Any], scores: bytes | None) -> None:
    """What upstream may refuse belongs to no family."""
    variant = FAMILY.variant({**BODY[DIALECT], **more})
    assert (variant and variant.scores) == scores


def test_grammar() -> None:
    """An answer that a grammar ends, or that calls tools, is not cut."""
    variant = FAMILY.variant({**BODY[DIALECT], "response_format": {"type": "json_object"}})
    assert variant and variant.has_grammar and variant.is_chat


def test_rows() -> None:
    """The log-probabilities tell the texts of tokens, too, and are cut with these."""
    assert FAMILY.text_at(SCORED, None, 3) == "a b c"
    assert FAMILY.text_at(answer(DIALECT, logprobs={"content": ROWS[:3]}), None, 3) is None
    found = answer(DIALECT, logprobs={"content": list(ROWS)})
    FAMILY.cut(found, None, 3, "a b c")
    assert found["choices"][0]["logprobs"] == {"content": ROWS[:3]}
    steps = [["c", 1, 1], ["c", 2, 1], ["c", 4, 2]]
    assert FAMILY.text_at(SCORED, steps, 2) == "a b"


def test_without_scores() -> None:
    """Without log-probabilities, a chunk that had only these is none."""
    found = answer(DIALECT, logprobs={"content": ROWS})
    steps = [["c", 1, 1], ["l", None, 1], 2, ["c", 2, 2, 4], {"late": [], "usage": []}]
    bare = [["c", 1, None], 2, ["c", 2, None, 4], {"late": [], "usage": []}]
    assert FAMILY.without_scores(found, steps) == bare
    assert found == answer(DIALECT)
    assert FAMILY.without_scores(found, None) is None


@each("kind", ["r", "t", "p", "x", "m"])
def test_parsed(kind: str) -> None:
    """A chunk that is not plain content is not cut."""
    with pytest.raises(Refused):
        FAMILY.text_at(answer(DIALECT), [[kind, 1], *STEPS[DIALECT]], 2)
