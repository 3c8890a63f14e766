"""Families of greedy calls of both APIs: which call of one it is, and how an answer is cut.

Pure. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sglang_cached_addon.core.families import MOST_TOKENS, Ended, Variant, limit_of, named
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import cutting
from sglang_cached_addon.dialects.base import Json
from sglang_cached_addon.dialects.openai import asking
from sglang_cached_addon.dialects.openai.recording import CHOICE
from sglang_cached_addon.dialects.openai.replay import member
from sglang_cached_addon.dialects.openai.shares import recount

LIMITS = ("max_completion_tokens", "max_tokens")
_SCORES = ("logprobs", "top_logprobs")
_GRAMMARS = ("response_format", "regex", "ebnf", "json_schema", "tools")
_KNOWN = (
    *asking.TRANSPORT,
    *("model", "messages", "prompt", "n", "seed", "lora_path", "extra_key", "cache_salt"),
    *("temperature", "top_p", "top_k", "min_p", "logit_bias", "min_tokens", "ignore_eos"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("stop", "stop_token_ids", "stop_regex", "no_stop_trim", "skip_special_tokens"),
    "best_of",  # which is 1
    *("chat_template_kwargs", "reasoning_effort", "continue_final_message"),
    *("tool_choice", "parallel_tool_calls", "separate_reasoning", "stream_reasoning"),
    *(*LIMITS, *_SCORES, *_GRAMMARS),
)


class Family(ABC):
    """The families of one of the two APIs."""

    limits: Sequence[str]
    """The fields that limit the tokens; the first one that is there counts."""
    default: float
    """How many tokens an answer has at most where the call does not say."""
    is_chat: bool

    @abstractmethod
    def scores(self, given: Json) -> bool | None:
        """Whether the fields of a call that ask for log-probabilities do so; None for those that
        upstream may refuse."""

    @abstractmethod
    def holder(self, choice: Json) -> tuple[Json, str]:
        """What has the text of a choice, and by which name."""

    @abstractmethod
    def steps(self, steps: Sequence[Any]) -> list[tuple[int, int | None, int | None]]:
        """For each chunk its characters, its rows of log-probabilities, and the tokens so far,
        where they are known. Raises `Refused` for one that says something else."""

    # As `base.Family`

    def variant(self, body: Json) -> Variant | None:
        if cutting.has_others(body, _KNOWN) or _has_media(body.get("messages")):
            return None
        limits = {name: body[name] for name in LIMITS if name in body}
        given = [limit_of(limits[name]) for name in self.limits if limits.get(name) is not None]
        if None in given or not limits.keys() <= set(self.limits):
            return None
        scores = {name: body[name] for name in _SCORES if name in body}
        wants, least = self.scores(scores), body.get("min_tokens") or 0
        if wants is None or type(least) is not int:
            return None
        return Variant(
            given[0] if given and given[0] else self.default,
            limits | scores,
            named(scores) if wants else b"",
            least,
            has_grammar=any(body.get(name) for name in _GRAMMARS),
            is_chat=self.is_chat,
        )

    def ask(self, body: Json, fields: Json) -> Json:
        others = {n: v for n, v in body.items() if n not in LIMITS and n not in _SCORES}
        return {**others, **fields}

    def ended(self, answer: Json) -> Ended | None:
        (choice,), usage = answer["choices"], member(answer, "usage", dict)
        tokens, prompt = usage.get("completion_tokens"), usage.get("prompt_tokens")
        finish = choice.get("finish_reason")
        if type(tokens) is not int or type(prompt) is not int or finish not in ("stop", "length"):
            return None
        return Ended(tokens, prompt, finish == "stop")

    def text(self, answer: Json) -> str:
        holder, name = self.holder(answer["choices"][0])
        return member(holder, name, str)

    def text_at(self, answer: Json, steps: list[Any] | None, count: int) -> str | None:
        choice, text = answer["choices"][0], self.text(answer)
        if isinstance(choice.get("matched_stop"), str):
            return None  # the text was trimmed
        if steps is None:
            pieces = self.pieces(choice)
            is_told = text.isascii() and "".join(pieces) == text
            return "".join(pieces[:count]) if is_told and len(pieces) >= count else None
        told = self.steps(_chunks(steps))
        characters = accumulate(length for length, _, _ in told)
        return cutting.text_at(text, zip(characters, _tokens(told), strict=True), count)

    def spelling(self, body: Json, answer: Json, count: int) -> Json | None:
        return None  # the ids of the tokens are not in the answer

    def cut(self, answer: Json, steps: list[Any] | None, count: int, text: str) -> list[Any] | None:
        (choice,), usage = answer["choices"], answer["usage"]
        holder, name = self.holder(choice)
        others = {n: v for n, v in choice.items() if n not in (*CHOICE, "text", "message")}
        said = {n: v for n, v in holder.items() if holder is not choice and n not in ("role", name)}
        odd = (usage.get("reasoning_tokens") or None, answer.get("sglext"))
        if any(value is not None for value in (*others.values(), *said.values(), *odd)):
            raise Refused(Reason.UNREADABLE)  # nobody knows how much of that would be there
        self.cut_rows(choice.get("logprobs"), usage["completion_tokens"], count)
        holder[name] = text
        choice["finish_reason"], choice["matched_stop"] = "length", None
        usage["completion_tokens"] = count
        recount(usage)
        if isinstance(metadata := answer.get("metadata"), dict) and "weight_versions" in metadata:
            metadata["weight_versions"] = cutting.with_end(metadata["weight_versions"], count)
        if steps is None:
            return None
        chunks = _chunks(steps)
        told = self.steps(chunks)
        kept = [k for k, end in enumerate(_tokens(told)) if 0 <= end <= count]
        if sum(told[k][0] for k in kept) != len(text):
            return None  # it is sent in one chunk
        return [*(chunks[k] for k in kept), *steps[len(chunks) :]]

    @abstractmethod
    def pieces(self, choice: Json) -> list[str]:
        """The texts of a choice's tokens, as its log-probabilities tell them."""

    @abstractmethod
    def cut_rows(self, logprobs: Any, tokens: int, count: int) -> None:
        """Keeps the log-probabilities of the first of so many tokens. Raises `Refused` for others
        than one for each."""

    def without_scores(self, answer: Json, steps: list[Any] | None) -> list[Any] | None:
        answer["choices"][0]["logprobs"] = None
        chunks = _chunks(steps or [])
        bare = [self.bare(chunk) for chunk in chunks]
        kept = [chunk for chunk in bare if chunk is not None]
        return None if steps is None else [*kept, *steps[len(chunks) :]]

    @abstractmethod
    def bare(self, step: Any) -> Any:
        """A step without its log-probabilities; None for one that has only these."""


def _chunks(steps: Sequence[Any]) -> list[Any]:
    """The steps but for the last, where that tells of members of the answer."""
    return [step for step in steps if not isinstance(step, dict)]


def _tokens(told: Sequence[tuple[int, int | None, int | None]]) -> list[int]:
    """The tokens so far at each chunk; -1 where they are not known."""
    rows = accumulate(-MOST_TOKENS if rows is None else rows for _, rows, _ in told)
    return [
        max(-1, so_far) if tokens is None else tokens
        for so_far, (_, _, tokens) in zip(rows, told, strict=True)
    ]


def _has_media(messages: Any) -> bool:
    """Whether a part of a message is no text: its processing may depend on the limit."""
    parts = (message.get("content") for message in messages or () if isinstance(message, dict))
    return any(
        not isinstance(part, dict) or part.get("type") != "text"
        for content in parts
        if isinstance(content, list)
        for part in content
    )
