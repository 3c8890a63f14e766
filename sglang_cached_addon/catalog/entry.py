"""An entry as people see it: a pool, with what was asked for it.

Pure: values, and the JSON of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.keys import PREFIX
from sglang_cached_addon.dialects import legible
from sglang_cached_addon.dialects.base import Dialect

MOST_SHOWN = 240
"""How many characters of a text are shown in a list."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models that are known, as keys begin with them."""

    names: Mapping[bytes, str]
    current: bytes | None = None
    """The one that answers now; None where nobody knows."""


@dataclass(frozen=True)
class Entry:
    """A pool, as it is stored."""

    key: bytes
    api: str
    """The name of its dialect."""
    samples: Sequence[Sample]
    content: bytes
    """The canonical call; empty where it is not kept."""
    size: int
    """The bytes that are kept of it."""
    dialect: Dialect | None
    """None where there is no such dialect here."""

    @cached_property
    def call(self) -> dict[str, Any] | None:
        """The canonical call, parsed."""
        call = orjson.loads(self.content) if self.content else None
        return call if isinstance(call, dict) else None

    @property
    def asked(self) -> Sequence[str]:
        """The texts of its prompt."""
        return legible.asked(self.dialect, self.call) if self.call else ()

    def said(self, sample: Sample) -> str:
        """What a sample says."""
        return legible.said(self.dialect, orjson.loads(sample.answer))

    @property
    def newest(self) -> float:
        """When its newest sample was stored."""
        return max(sample.stored_at for sample in self.samples)

    def as_json(self, models: Models) -> dict[str, Any]:
        """As a list shows it."""
        model = self.key[:PREFIX]
        return {
            "key": self.key.hex(),
            "api": self.api,
            "model": models.names.get(model),
            "is_current": model == models.current,
            "samples": len(self.samples),
            "tokens": sum(sample.tokens for sample in self.samples),
            "bytes": self.size,
            "stored_at": min(sample.stored_at for sample in self.samples),
            "last_stored_at": self.newest,
            "request": preview("\n".join(self.asked)),
            "answer": preview(self.said(self.samples[0])),
        }

    def as_whole(self, models: Models, runs: Sequence[Sequence[str]]) -> dict[str, Any]:
        """With all that there is; `runs` are those in which each sample was used."""
        pairs = zip(self.samples, runs, strict=True)
        return {
            **self.as_json(models),
            "call": self.call,
            "texts": list(self.asked),
            "answers": [self._answer(sample, list(names)) for sample, names in pairs],
        }

    def _answer(self, sample: Sample, runs: list[str]) -> dict[str, Any]:
        answer = orjson.loads(sample.answer)
        return {
            "text": legible.said(self.dialect, answer),
            "finish_reason": legible.finish_reason(answer),
            "tokens": sample.tokens,
            "seconds": sample.seconds,
            "stored_at": sample.stored_at,
            "runs": runs,
            "answer": answer,
        }


def preview(text: str) -> str:
    """The beginning of a text, in one line."""
    start = " ".join(text[: 4 * MOST_SHOWN].split())
    return start if len(start) <= MOST_SHOWN else f"{start[: MOST_SHOWN - 1]}…"
