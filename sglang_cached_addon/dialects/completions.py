"""OpenAI's `/v1/completions`: one prompt or a list of them, as text or token ids.

The choices of prompt i are those from `i*n` to `i*n + n - 1`. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Fill, Mint, Recorded, Script, Split
from sglang_cached_addon.core.identity import SGLANG, UNKNOWN, VLLM, Server
from sglang_cached_addon.core.keys import canonical, canonical_each
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import base, completions_stream, openai, openai_stream
from sglang_cached_addon.dialects.base import Recorder

# In a batch a list in one of these holds a value for each prompt.
_PER_ITEM = ("prompt", "rid", "lora_path", "extra_key", "cache_salt")

# Lists that are one value, whatever the number of prompts.
_SHARED_LISTS = ("stop", "stop_token_ids", "stop_regex")


class Completions:
    """The dialect of POST `/v1/completions`."""

    name = "openai-completion"
    routes = (("POST", "/v1/completions"),)
    transport = openai.TRANSPORT

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        return openai.probes(model, {"prompt": "."})

    def read(self, body: dict[str, Any]) -> Call:
        base.refuse_unstorable(body)
        size = _batch_size(body.get("prompt"))
        n = base.read_n(body)
        openai.refuse_shared_report(body, n * (size or 1))
        rids = base.read_rids(body, n, size is not None, size or 1)
        content = base.content_fields(body, openai.TRANSPORT)
        content.pop("n", None)
        per_item = _per_item_lists(content, size)
        items = canonical_each(content, per_item) if per_item else [canonical(content)]
        stream, is_seeded = openai_stream.streaming(body), body.get("seed") is not None
        return Call(body, tuple(items), n, size is not None, rids, stream, is_seeded)

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> Fill:
        n, order, skip = base.draw(call, shortfalls, server)
        body = dict(call.body)
        if call.batched:
            base.take(body, _per_item_lists(body, len(call.items)), order)
        if n != call.n:
            body["n"] = n
        is_one = len(order) * n == 1
        counts = openai_stream.ask_for_usage(call, body, server, is_one=is_one)
        added = () if is_one else openai.ask_for_tokens(call, body, server, _TELLS)
        rids = base.mint_rids(call, body, order, n, mint)
        return Fill(body, order, n, rids, server, skip, added, counts)

    def split(self, call: Call, fill: Fill, answer: Any) -> Split:
        return openai.split(fill, answer, _prompts(call, fill), limit=_limit(call))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        return openai.write(call, samples)

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        said = {"text": ""}
        return openai.aborted(call, rid, now, "text_completion", said)

    def record(self, call: Call, fill: Fill) -> Recorder:
        return openai_stream.Recorder(
            [completions_stream.Tape() for _ in range(fill.total)],
            completions_stream.KIND,
            lambda answer, told: openai.split(
                fill, answer, _prompts(call, fill), told, limit=_limit(call)
            ),
            server=fill.server,
        )

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        return openai_stream.script(call, samples, completions_stream.chunks)

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        return openai_stream.usage(call, samples, completions_stream.KIND, nulls=False)

    def without_usage(self, event: bytes, value: Any) -> bytes:
        return openai_stream.without_usage(event, value)

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        openai_stream.renumber(event, choices, like)

    def rename(self, event: Any, rids: Sequence[str]) -> None:
        openai_stream.rename(event, rids)

    def cut(self, event: Any) -> None:
        pass  # no event has all of a choice


_TELLS = dict.fromkeys((SGLANG, VLLM), ("return_token_ids", "token_ids", "prompt_token_ids"))
"""What to ask for, so that each choice tells how long it and its prompt are, and where it then
tells it."""

_LIMIT = 16
"""OpenAI's, and everybody's, where none is given."""


def _limit(call: Call) -> Any:
    """The tokens of a choice at most."""
    return call.body.get("max_tokens", _LIMIT)


def _prompts(call: Call, fill: Fill) -> list[Any]:
    """Those that were sent."""
    prompts: list[Any] = fill.body["prompt"] if call.batched else [fill.body["prompt"]]
    return prompts


def _batch_size(prompt: Any) -> int | None:
    """How many prompts a list of them holds; None for a lone one (text, or a list of ids)."""
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
