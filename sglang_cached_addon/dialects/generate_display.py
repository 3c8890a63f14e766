"""How people see calls of `/generate`, and the samples that answer them.

Pure. A body may be anything that is JSON. An event of a stream has all of its sample so far, or
what is new of it: the number of its tokens tells which, as in `generate_stream`.
"""

from __future__ import annotations

from typing import Any

from sglang_cached_addon.dialects.display import (
    GAP,
    Passage,
    Shown,
    listed,
    members,
    prompts,
    told,
    written,
)

_PROMPTS = {"text": "", "input_ids": "token ids", "input_embeds": "embeddings"}
"""The fields that hold prompts, and what these consist of."""


class GenerateDisplay:
    """The `Display` of SGLang's own API."""

    spoken = tuple(_PROMPTS)

    def passages(self, body: dict[str, Any]) -> list[Passage]:
        given = ((name, body.get(name)) for name in _PROMPTS)
        return [
            passage
            for name, value in given
            if value is not None
            for passage in prompts(_PROMPTS[name], value)
        ]

    def reader(self) -> Reader:
        return Reader()


class _Sample:
    """What has come of one sample."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._ids: list[Any] = []
        self._tokens: Any = None
        self._is_incremental = False
        self._meta: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> None:
        self._meta = members(event.get("meta_info"))
        text, ids = event.get("text"), listed(event.get("output_ids"))
        before, self._tokens = self._tokens, self._meta.get("completion_tokens")
        if isinstance(before, int) and isinstance(self._tokens, int) and before:
            self._is_incremental = len(ids) < self._tokens and len(ids) == self._tokens - before
        if self._is_incremental:
            self._parts.append(written(text or ""))
            self._ids += ids
        else:
            self._parts, self._ids = [written(text or "")], [*ids]

    def skip(self) -> None:
        self._parts.append(GAP)
        self._tokens = None  # so that the next event is read as those before

    def shown(self, index: int) -> Shown:
        finish, meta = self._meta.get("finish_reason"), self._meta
        ended = written(members(finish).get("type") or finish) if finish else "unfinished"
        counts = {"tokens": self._tokens, "reasoning tokens": meta.get("reasoning_tokens")}
        facts = [ended, *(f"{written(count)} {name}" for name, count in counts.items() if count)]
        if rows := listed(meta.get("output_token_logprobs")):
            facts.append(f"logprobs of {len(rows)} tokens")
        if isinstance(seconds := meta.get("e2e_latency"), float):
            facts.append(f"{seconds:.2f} s")
        return Shown(index, "".join(self._parts) or _ids(self._ids), tuple(facts))


def _ids(ids: list[Any]) -> str:
    """What a server without a tokenizer says."""
    return f"(token ids) {written(ids)}" if ids else ""


class Reader:
    """An `AnswerReader` of samples, which a JSON answer has in a list, or as the only one."""

    def __init__(self) -> None:
        self._samples: dict[int, _Sample] = {}
        self._first: dict[str, Any] = {}

    def add(self, event: Any) -> None:
        for k, native in enumerate(map(members, event if isinstance(event, list) else [event])):
            if not native:
                continue
            index = native.get("index")
            number = index if isinstance(index, int) else k
            self._samples.setdefault(number, _Sample()).add(native)
            self._first = self._first or members(native.get("meta_info"))

    def skip(self) -> None:
        for sample in self._samples.values():
            sample.skip()

    def facts(self) -> list[str]:
        said = {"id": "id", "prompt tokens:": "prompt_tokens", "weights": "weight_version"}
        return told({words: self._first.get(name) for words, name in said.items()})

    def samples(self) -> list[Shown]:
        return [sample.shown(index) for index, sample in sorted(self._samples.items())]
