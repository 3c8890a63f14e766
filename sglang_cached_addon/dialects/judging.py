"""What dialects share for judging upstream's answers: whether they may be stored.

Pure: takes members of parsed answers, gives a `Reason` or None.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.policy import Reason, Refused


def weights_refusal(meta: Any) -> Reason | None:
    """Why an answer is not stored whose tokens are of more than one set of weights."""
    spans = meta.get("weight_versions") if isinstance(meta, dict) else None
    return Reason.MIXED_WEIGHTS if isinstance(spans, list) and len(spans) > 1 else None


def weight_versions(metas: Iterable[Any]) -> frozenset[str]:
    """The weights that `meta_info` or `metadata` objects name."""
    found = (meta.get("weight_version") for meta in metas if isinstance(meta, dict))
    return frozenset(version for version in found if isinstance(version, str))


def is_error(answer: Any) -> bool:
    """Whether an answer, or a member or an event of one, tells an error."""
    return isinstance(answer, dict) and answer.get("error") is not None


def finish_refusal(kind: Any) -> Reason | None:
    """Why a sample with this type of finish reason is not stored; None is one that goes on."""
    if not isinstance(kind, str):
        return Reason.UNFINISHED
    return Reason.ABORT if kind in _ABORTS else None


_ABORTS = ("abort", "error", "cancelled", "load", "unload")
"""SGLang and vLLM say that a sample was aborted, vLLM that it failed; Ollama that it has only
loaded a model, or unloaded it."""


def dump(value: Any) -> bytes:
    """Compact JSON, as SGLang writes it; raises `Refused` for what is nested too deep."""
    try:
        return keys.dumps(value)
    except TypeError:
        raise Refused(Reason.UNREADABLE) from None
