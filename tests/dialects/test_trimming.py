"""Asking for what is short."""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.core.call import Call
from sglang_cached_addon.core.identity import Server
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.dialects import trimming


def test_take() -> None:
    """Lists that have a value for each prompt are cut to the prompts that are wanted."""
    lists = {"p": ["a", "b", "c"], "q": "one for all", "s": [1, 2, 3]}
    body: dict[str, Any] = dict(lists)
    trimming.take(body, ("p",), (2, 0, 0))
    assert body == {"p": ["c", "a", "a"], "q": "one for all", "s": [1, 2, 3]}
    assert lists["p"] == ["a", "b", "c"]


def test_samples_of_a_seed() -> None:
    """With a seed, all samples of a prompt are asked for and the stored ones skipped, as each may
    depend on its place; not with SGLang, where a seed makes no difference between them."""
    for is_seeded, engine, drawn in (
        (False, VLLM, (2, (1,), ())),
        (True, SGLANG, (2, (1,), ())),
        (True, VLLM, (3, (1,), (1,))),
        (True, "", (3, (1,), (1,))),
    ):
        call = Call({}, (b"a", b"b"), 3, True, is_seeded=is_seeded)
        assert trimming.draw(call, (0, 2), Server(engine)) == drawn, (is_seeded, engine)
