"""Families of greedy calls of `/v1/completions`.

Pure. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import NULL, Json
from sglang_cached_addon.dialects.openai.family import Family
from sglang_cached_addon.dialects.openai.replay import member


class CompletionsFamily(Family):
    """The families of completions."""

    limits = ("max_tokens",)
    is_chat = False

    def __init__(self, default: float) -> None:
        self.default = default

    def scores(self, given: Json) -> bool | None:
        wants = given.get("logprobs")
        is_odd = type(wants) not in (int, NULL) or "top_logprobs" in given
        return None if is_odd else wants is not None

    def holder(self, choice: Json) -> tuple[Json, str]:
        return choice, "text"

    def steps(self, steps: Sequence[Any]) -> list[tuple[int, int | None, int | None]]:
        return [(*((step,) if isinstance(step, int) else step), None, None)[:3] for step in steps]

    def pieces(self, choice: Json) -> list[str]:
        return member(choice.get("logprobs"), "tokens", list)

    def cut_rows(self, logprobs: Any, tokens: int, count: int) -> None:
        for name, rows in logprobs.items() if isinstance(logprobs, dict) else ():
            if not isinstance(rows, list) or len(rows) not in (0, tokens):
                raise Refused(Reason.UNREADABLE)
            logprobs[name] = rows[:count]

    def bare(self, step: Any) -> Any:
        return step if isinstance(step, int) else [step[0], None, *step[2:]]
