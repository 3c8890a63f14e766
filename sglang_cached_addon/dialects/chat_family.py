"""Families of greedy calls of `/v1/chat/completions`.

Pure. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.chat_stream import Step
from sglang_cached_addon.dialects.openai.family import LIMITS, Family
from sglang_cached_addon.dialects.openai.replay import member


class ChatFamily(Family):
    """The families of chats."""

    limits = LIMITS
    default = inf
    is_chat = True

    def scores(self, given: Json) -> bool | None:
        wants, top = given.get("logprobs", False), given.get("top_logprobs")
        is_odd = type(wants) is not bool or (top is not None and not wants)
        return None if is_odd else wants

    def holder(self, choice: Json) -> tuple[Json, str]:
        return member(choice, "message", dict), "content"

    def steps(self, steps: Sequence[Any]) -> list[tuple[int, int | None, int | None]]:
        told = []
        for step in steps:
            kind, length, rows, tokens = (
                (Step.CONTENT, step, None, None)
                if isinstance(step, int)
                else (*step, None, None, None)[:4]
            )
            if kind not in (Step.CONTENT, Step.NOTHING):
                raise Refused(Reason.UNREADABLE)
            told.append((length or 0, rows, tokens))
        return told

    def pieces(self, choice: Json) -> list[str]:
        rows = member(choice.get("logprobs"), "content", list)
        return [member(row, "token", str) for row in rows]

    def cut_rows(self, logprobs: Any, tokens: int, count: int) -> None:
        if isinstance(logprobs, dict):
            if len(rows := member(logprobs, "content", list)) != tokens:
                raise Refused(Reason.UNREADABLE)
            logprobs["content"] = rows[:count]

    def bare(self, step: Any) -> Any:
        if isinstance(step, int):
            return step
        return None if step[0] == Step.NOTHING else [*step[:2], None, *step[3:]]
