"""How people see calls of `/v1/completions`."""

from __future__ import annotations

from sglang_cached_addon.dialects.completions_display import CompletionsDisplay
from sglang_cached_addon.dialects.display import Passage


def test_passages() -> None:
    """Each prompt is a passage."""
    display = CompletionsDisplay()
    assert display.passages({"prompt": ["a", "b"]}) == [
        Passage("prompt 1 of 2", "a"), Passage("prompt 2 of 2", "b"),
    ]  # fmt: skip
    assert display.passages({}) == []
