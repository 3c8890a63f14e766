"""OpenAI's `/v1/completions`: one prompt or a list of them, as text or token ids.

The choices of prompt i are those from `i*n` to `i*n + n - 1`. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, UpstreamCall
from sglang_cached_addon.core.keys import canonical, canonical_each
from sglang_cached_addon.core.neighbours import SGLANG, VLLM
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    completions_display,
    completions_family,
    completions_stream,
    reading,
)
from sglang_cached_addon.dialects.openai import asking, choices
from sglang_cached_addon.dialects.openai.api import Api

# In a batch a list in one of these holds a value for each prompt.
_PER_ITEM = ("prompt", "rid", "lora_path", "extra_key", "cache_salt")

# Lists that are one value, whatever the number of prompts.
_SHARED_LISTS = ("stop", "stop_token_ids", "stop_regex")

_LIMIT = 16
"""How many tokens a choice has at most where the call does not say, with OpenAI and all others."""


class Completions(Api):
    """The dialect of POST `/v1/completions`."""

    name = "openai-completion"
    routes = (("POST", "/v1/completions"),)
    kind = chunk_kind = completions_stream.KIND
    writes_nulls = False
    family = completions_family.CompletionsFamily(_LIMIT)
    display = completions_display.CompletionsDisplay()
    choice_recorder = completions_stream.ChoiceRecorder
    chunks = staticmethod(completions_stream.chunks)
    tells = dict.fromkeys((SGLANG, VLLM), ("return_token_ids", "token_ids", "prompt_token_ids"))

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return asking.probes(model, {"prompt": "."})

    def read(self, body: dict[str, Any]) -> Call:
        reading.refuse_unstorable(body)
        size = _batch_size(body.get("prompt"))
        n = reading.read_n(body)
        reading.refuse_too_many(size or 1, n)
        asking.refuse_dependent(body, n * (size or 1))
        rids = reading.read_rids(body, n, size is not None, size or 1)
        content = reading.content_fields(body, asking.TRANSPORT)
        content.pop("n", None)
        per_item = _per_item_lists(content, size)
        items = canonical_each(content, per_item) if per_item else [canonical(content)]
        stream, is_seeded = asking.streaming(body), body.get("seed") is not None
        is_batched, is_greedy = size is not None, reading.is_greedy(body)
        return Call(body, tuple(items), n, is_batched, rids, stream, is_seeded, is_greedy)

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        return choices.aborted(call, rid, now, self.kind, {"text": ""})

    def per_item(self, call: Call) -> Sequence[str]:
        return _per_item_lists(call.body, len(call.items) if call.batched else None)

    def prompts(self, call: Call, sent: UpstreamCall) -> list[Any]:
        prompt = sent.body["prompt"]
        return prompt if call.batched else [prompt]

    def limit(self, call: Call) -> Any:
        return call.body.get("max_tokens", _LIMIT)


def _batch_size(prompt: Any) -> int | None:
    """How many prompts the list has; None for a single one, as text or as a list of ids."""
    if isinstance(prompt, str):
        return None
    if isinstance(prompt, list) and prompt:
        kinds = set(map(type, prompt))
        if kinds == {int}:
            return None
        ids = kinds == {list} and all(p and set(map(type, p)) == {int} for p in prompt)
        if kinds == {str} or ids:
            return len(prompt)
    raise Refused(Reason.MALFORMED)


def _per_item_lists(body: dict[str, Any], size: int | None) -> tuple[str, ...]:
    """The fields of a body whose list holds a value for each prompt."""
    lists = [n for n, v in body.items() if isinstance(v, list) and n not in _SHARED_LISTS]
    if size is None:
        if any(name in _PER_ITEM and name != "prompt" for name in lists):
            raise Refused(Reason.MALFORMED)
        return ()
    if any(name not in _PER_ITEM for name in lists):
        raise Refused(Reason.INSEPARABLE)
    if any(len(body[name]) != size for name in lists):
        raise Refused(Reason.MALFORMED)
    return tuple(lists)


DIALECT = Completions()
