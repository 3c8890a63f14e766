"""How people see the answers of OpenAI's APIs: choices, of JSON or of a stream's chunks.

Pure. A JSON answer is read as a stream of one chunk: what it calls `message` is a `delta` there.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import GAP, Shown, listed, members, parted, told, written

_SAID = ("content", "text", "refusal")
_THOUGHT = ("reasoning_content", "reasoning")


class _Choice:
    """What has come of one choice."""

    def __init__(self) -> None:
        self.finish: Any = None
        self.rows = 0
        """How many tokens have log-probabilities."""
        self._said: list[str] = []
        self._thought: list[str] = []
        self._calls: dict[Any, dict[str, str]] = {}

    def add(self, choice: dict[str, Any]) -> None:
        for delta in (choice, members(choice.get("message")), members(choice.get("delta"))):
            self._said += (written(delta[name]) for name in _SAID if delta.get(name))
            self._thought += (written(delta[name]) for name in _THOUGHT if delta.get(name))
            for k, call in enumerate(listed(delta.get("tool_calls"))):
                self._call(k, members(call))
        self.finish = choice.get("finish_reason") or self.finish
        scored = members(choice.get("logprobs"))
        self.rows += len(listed(scored.get("content")) or listed(scored.get("tokens")))

    def _call(self, k: int, call: dict[str, Any]) -> None:
        index, function = call.get("index"), members(call.get("function"))
        known = self._calls.setdefault(
            index if isinstance(index, int) else k, {"name": "", "arguments": ""}
        )
        for name in known:
            known[name] += written(function[name]) if function.get(name) else ""

    def skip(self) -> None:
        for texts in (self._said, self._thought):
            texts += [GAP] if texts else []

    def text(self) -> str:
        said, thought = "".join(self._said), "".join(self._thought)
        calls = [f"{call['name']}({call['arguments']})" for call in self._calls.values()]
        return parted(thought, said, calls)


class Reader:
    """An `AnswerReader` of choices."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}

    def add(self, event: Any) -> None:
        answer = members(event)
        for k, choice in enumerate(map(members, listed(answer.get("choices")))):
            index = choice.get("index")
            number = index if isinstance(index, int) else k
            self._choices.setdefault(number, _Choice()).add(choice)
        self._head.update((n, answer[n]) for n in ("model", "id") if answer.get(n))
        self._usage = members(answer.get("usage")) or self._usage

    def skip(self) -> None:
        for choice in self._choices.values():
            choice.skip()

    def facts(self) -> list[str]:
        usage = {
            f"{name.replace('_', ' ')}:": self._usage.get(name)
            for name in ("prompt_tokens", "completion_tokens", "reasoning_tokens")
        }
        return told({**self._head, **usage})

    def samples(self) -> list[Shown]:
        return [
            Shown(index, choice.text(), tuple(self._of(choice)))
            for index, choice in sorted(self._choices.items())
        ]

    def _of(self, choice: _Choice) -> list[str]:
        facts = [written(choice.finish) if choice.finish else "unfinished"]
        tokens = self._usage.get("completion_tokens") if len(self._choices) == 1 else None
        if tokens is not None:
            facts.append(f"{written(tokens)} tokens")
        if choice.rows:
            facts.append(f"logprobs of {choice.rows} tokens")
        return facts
