"""How people see calls of `/v1/completions`: their prompts.

Pure. A body may be anything that is JSON.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import Passage, prompts
from sglang_cached_addon.dialects.openai.display import Reader


class CompletionsDisplay:
    """The `Display` of completions."""

    spoken = ("prompt",)
    reader = Reader

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        return prompts("token ids", body["prompt"]) if "prompt" in body else []
