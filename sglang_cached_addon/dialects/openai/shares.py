"""Each choice's own share of an answer's `usage`, which OpenAI's APIs tell for all together.

A share is exact where the answer itself shows it: where each choice tells its tokens, or all come
to what each may have at most. Others are split by length of text, with the total kept: that will
do for the answer as a whole, and for nothing that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_cached_addon.dialects import judging


def of(
    usage: Any,
    choices: Sequence[dict[str, Any]],
    prompts: Sequence[Any],
    n: int,
    told: Sequence[dict[str, Any] | None] = (),
    *,
    limit: Any = None,
) -> tuple[list[dict[str, Any] | None], bool]:
    """Each choice's own `usage`, and whether all are exact.

    `prompts` are those that were sent, `n` choices each. `told` is what each choice's stream said
    of its own usage, and `limit` the number of tokens that a choice has at most.
    """
    if not isinstance(usage, dict):
        return [None] * len(choices), True
    if len(choices) == 1:
        return [dict(usage)], True
    told = told if all(told) else ()
    sharer = _Sharer(choices, prompts, n, told, limit)
    columns = {name: sharer.share(name, value) for name, value in usage.items()}
    rows = [{name: parts[k] for name, parts in columns.items()} for k in range(len(choices))]
    return [recount(row) for row in rows], sharer.is_exact


def recount(usage: dict[str, Any]) -> dict[str, Any]:
    """Sets the total to the sum of its parts, in place."""
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if "total_tokens" in usage and isinstance(prompt, int) and isinstance(completion, int):
        usage["total_tokens"] = prompt + completion
    return usage


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Splits a whole number by weights; the parts sum to the total (largest remainders)."""
    if not sum(weights):
        weights = [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    remainders = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in remainders[: total - sum(parts)]:
        parts[i] += 1
    return parts


@dataclass
class _Sharer:
    """Shares out the members of one usage."""

    choices: Sequence[dict[str, Any]]
    prompts: Sequence[Any]
    n: int
    told: Sequence[dict[str, Any] | None]
    limit: Any
    is_exact: bool = True

    def share(self, name: str, value: Any) -> list[Any]:
        """Each choice's part of a member."""
        if name == "total_tokens":
            return [value] * len(self.choices)  # to be counted again
        if name == "prompt_tokens" and type(value) is int:
            return self._spread(self._of_prompts(value))
        if name.startswith("prompt_tokens"):
            return self._spread(self._of_details(value))
        if type(value) is int:
            return self._of_choices(name, value)
        if isinstance(value, dict):
            columns = {inner: self._of_choices(inner, part) for inner, part in value.items()}
            parts = [
                {inner: column[k] for inner, column in columns.items()}
                for k in range(len(self.choices))
            ]
            # SGLang says null where there is nothing to tell.
            return [
                part if not part or any(v != 0 for v in part.values()) else None for part in parts
            ]
        return [value] * len(self.choices)

    def _spread(self, parts: Sequence[Any]) -> list[Any]:
        """For each choice, what is given for its prompt."""
        return [parts[k // self.n] for k in range(len(self.choices))]

    def _of_prompts(self, total: int) -> list[int]:
        if len(self.prompts) == 1:
            return [total]
        firsts = self.choices[:: self.n]
        for counts in (
            [_count(choice.get("prompt_token_ids")) for choice in firsts],
            [_count(prompt) for prompt in self.prompts],
            [_number(usage, "prompt_tokens") for usage in self.told[:: self.n]],
        ):
            if counts and _sum(counts) == total:
                return [int(count or 0) for count in counts]
        count = len(self.prompts)
        if self.prompts.count(self.prompts[0]) == count and total % count == 0:
            return [total // count] * count
        self.is_exact = False
        return apportion(total, [len(prompt) for prompt in self.prompts])

    def _of_details(self, value: Any) -> list[Any]:
        """Each prompt's part of `prompt_tokens_details`. How much of a prompt the server had cached
        depends on that moment and not on the prompt, so that any share of it will do."""
        count = len(self.prompts)
        if count == 1 or not isinstance(value, dict):
            return [value] * count
        columns = {}
        for name, part in value.items():
            columns[name] = [part] * count
            if type(part) is int:
                self.is_exact = self.is_exact and (part == 0 or name == "cached_tokens")
                columns[name] = apportion(part, [len(prompt) for prompt in self.prompts])
        return [{name: parts[i] for name, parts in columns.items()} for i in range(count)]

    def _of_choices(self, name: str, value: Any) -> list[Any]:
        """Each choice's part of what was generated."""
        count = len(self.choices)
        if type(value) is not int:
            return [value] * count
        if value == 0:
            return [0] * count
        known = [self._known(k, name) for k in range(count)]
        if _sum(known) == value:
            return known
        is_limited = name == "completion_tokens" and type(self.limit) is int
        if is_limited and value == self.limit * count:
            return [self.limit] * count
        self.is_exact = False
        return apportion(value, [_length(choice, name) for choice in self.choices])

    def _known(self, k: int, name: str) -> Any:
        """The number that a choice itself tells."""
        choice = self.choices[k]
        told = (self.told[k] if self.told else None) or {}
        for members in (choice.get("meta_info"), told, told.get("completion_tokens_details")):
            if isinstance(members, dict) and type(members.get(name)) is int:
                return members[name]
        if name != "completion_tokens":
            return None
        for ids in (choice.get("token_ids"), choice.get("response_token_ids"), _rows(choice)):
            if isinstance(ids, list):
                return len(ids)
        return None


def _count(ids: Any) -> int | None:
    return len(ids) if isinstance(ids, list) else None


def _number(usage: dict[str, Any] | None, name: str) -> int | None:
    value = usage.get(name) if usage else None
    return value if type(value) is int else None


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum of the counts, if all are known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _rows(choice: dict[str, Any]) -> Any:
    """The log-probabilities, one for each token; with completions, the prompt may have some,
    too."""
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    return logprobs.get("content" if "message" in choice else "tokens")


def _length(choice: dict[str, Any], name: str) -> int:
    """How long a choice is, in a unit in which choices of one answer can be compared."""
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    assert isinstance(message, dict)
    thought = message.get("reasoning_content")
    if "reasoning" in name:
        return len(thought) if isinstance(thought, str) else 0
    calls = message.get("tool_calls")
    texts = (choice.get("text"), message.get("content"), thought)
    return sum(len(text) for text in texts if isinstance(text, str)) + (
        len(judging.dump(calls)) if calls else 0
    )
