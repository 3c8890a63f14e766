"""SGLang's native `/generate`: `n` in `sampling_params`, prompts as text, ids or embeddings.

One prompt with n=1 is answered by an object, everything else by a flat array in the order
of the prompts. A sample is such an object. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.call import (
    Call,
    Fill,
    Generation,
    Mint,
    Recorded,
    Script,
    Split,
    Streaming,
)
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.keys import canonical, canonical_each
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import base, generate_stream
from sglang_cached_addon.dialects.base import Recorder
from sglang_cached_addon.wire import sse

TRANSPORT: base.TransportTable = {
    "rid": (str, list, base.NULL),
    "stream": (bool,),
    "session_id": (str, base.NULL),
    "log_metrics": (bool,),
    "no_logs": (bool,),
    "background": (bool,),
    "priority": (int, base.NULL),
    "routing_key": (str, base.NULL),
    "conversation_id": (str, base.NULL),
    "custom_labels": (dict, base.NULL),
    "external_trace_header": (dict, base.NULL),
    "received_time": (int, float, base.NULL),
}
"""Request identity, scheduling and logging: nothing of it reaches the model."""

_PROMPTS = ("text", "input_ids", "input_embeds")

# In a batch a list in one of these holds a value for each prompt.
_PER_ITEM = (
    *_PROMPTS,
    "sampling_params",
    "rid",
    "lora_path",
    "extra_key",
    "cache_salt",
    "watermark",
    "return_hidden_states",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "return_sampling_mask",
    "sampling_logprobs_mode",
    "custom_logit_processor",
)

# ... but in these only with n=1: SGLang refuses the list otherwise.
_PER_ITEM_N1 = frozenset(_PER_ITEM[_PER_ITEM.index("return_logprob") :])

# A lone prompt with n=1 and any other form read these differently, so samples of one form
# must not serve the other.
_FORM_DEPENDENT = (
    "image_data",
    "video_data",
    "audio_data",
    "mm_hashes",
    "mm_content_hashes",
    "modalities",
    "use_audio_in_video",
    "video_config",
    "images_config",
    "max_dynamic_patch",
    "min_dynamic_patch",
    "image_max_dynamic_patch",
    "video_max_dynamic_patch",
    "positional_embed_overrides",
    "lora_id",
    "multi_item_delimiter_indices",
    "token_indices_to_pool",
)
_MEDIA = ("image_data", "video_data", "audio_data")


class Generate:
    """The dialect of POST and PUT `/generate`."""

    name = "sglang-generate"
    routes = (("POST", "/generate"), ("PUT", "/generate"))
    transport = TRANSPORT

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        # SGLang answers no prompts with no samples, and its scheduler is not even asked.
        named = {"model": model} if model else {}
        return (
            {**named, "text": []},
            {**named, "text": ".", "sampling_params": {"max_new_tokens": 1}},
        )

    def read(self, body: dict[str, Any]) -> Call:
        base.refuse_unstorable(body)
        size = _batch_size(body)
        batched = size is not None
        n = _read_n(body.get("sampling_params"), size)
        if any(base.media_refusal(body[name]) for name in base.given(body, _MEDIA)):
            raise Refused(Reason.MEDIA)
        if (batched or n > 1) and base.given(body, _FORM_DEPENDENT):
            raise Refused(Reason.INSEPARABLE)
        rids = base.read_rids(body, n, batched, size or 1)
        content = base.content_fields(body, TRANSPORT)
        per_item = _per_item_lists(content, size, n)
        content = _without_n(content)
        items = canonical_each(content, per_item) if per_item else [canonical(content)]
        stream = Streaming() if base.is_stream(body, generate_stream.UNSTREAMABLE) else None
        return Call(body, tuple(items), n, batched, rids, stream)

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> Fill:
        n = base.trimmed_n(shortfalls)
        order = base.fill_order(shortfalls, n)
        body = dict(call.body)
        if call.batched:
            base.take(body, _per_item_lists(body, len(call.items), call.n), order)
        if n != call.n:
            params = body["sampling_params"]
            body["sampling_params"] = (
                [{**p, "n": n} for p in params] if isinstance(params, list) else {**params, "n": n}
            )
        return Fill(body, order, n, base.mint_rids(call, body, order, n, mint), server)

    def split(self, call: Call, fill: Fill, answer: Any) -> Split:
        natives = answer if call.batched or fill.n > 1 else [answer]
        if not isinstance(natives, list) or len(natives) != fill.total:
            raise Refused(Reason.ERROR if _is_error(answer) else Reason.UNREADABLE)
        generations, refusal = [], None
        for i, native in enumerate(natives):
            meta = native.get("meta_info") if isinstance(native, dict) else None
            if not isinstance(meta, dict):
                raise Refused(Reason.ERROR if _is_error(native) else Reason.UNREADABLE)
            finish = meta.get("finish_reason")
            kind = finish.get("type") if isinstance(finish, dict) else None
            error = Reason.ERROR if _is_error(native) else None
            refusal = refusal or error or base.finish_refusal(kind) or base.weights_refusal(meta)
            tokens = meta.get("completion_tokens")
            generations.append(
                Generation(
                    fill.order[i // fill.n],
                    base.dump(native),
                    tokens if isinstance(tokens, int) else 0,
                )
            )
        metas = [native["meta_info"] for native in natives]
        return Split(tuple(generations), refusal, base.weight_versions(metas))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        natives = [sample for pool in samples for sample in pool]
        if call.rids:
            natives = [
                _renamed(native, rid) for native, rid in zip(natives, call.rids, strict=True)
            ]
        if call.batched or call.n > 1:
            return b"[" + b",".join(natives) + b"]"
        return natives[0]

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        meta = {"id": rid, "finish_reason": _ABORTED, "completion_tokens": 0}
        return base.dump({"text": "", "output_ids": [], "meta_info": meta})

    def record(self, call: Call, fill: Fill) -> Recorder:
        is_array = call.batched or fill.n > 1
        return generate_stream.Recorder(
            fill.total, is_array, lambda answer: self.split(call, fill, answer)
        )

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        is_indexed = call.batched or call.n > 1
        found = []
        for i, pool in enumerate(samples):
            for j, sample in enumerate(pool):
                index = i * call.n + j if is_indexed else None
                rid = call.rids[i] if call.rids else None
                said = generate_stream.events(sample, index, rid)
                found.append([sse.event(data) for data in said])
        return Script(tuple(found))

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        return None  # each event has its own, in `meta_info`

    def without_usage(self, event: bytes, value: Any) -> bytes:
        return event  # `meta_info` has it anyway

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        event["index"] = choices[event.get("index", 0)]

    def rename(self, event: Any, rids: Sequence[str]) -> None:
        event["meta_info"]["id"] = rids[event.get("index", 0)]

    def cut(self, event: Any) -> None:
        event["meta_info"]["finish_reason"] = _ABORTED


_ABORTED = {"type": "abort", "message": "Abort in waiting queue"}


def _batch_size(body: dict[str, Any]) -> int | None:
    """How many prompts a list of them holds; None for a lone prompt."""
    sizes = {_prompt_count(name, body[name]) for name in _PROMPTS if body.get(name) is not None}
    if len(sizes) != 1:  # no prompt, or two that disagree
        raise Refused(Reason.MALFORMED)
    return sizes.pop()


def _prompt_count(name: str, value: Any) -> int | None:
    if name == "text":
        if isinstance(value, str):
            return None
        if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            return len(value)
        raise Refused(Reason.MALFORMED)
    depth = 1 if name == "input_ids" else 2
    if _is_numbers(value, depth, name):
        return None
    if isinstance(value, list) and value and all(_is_numbers(v, depth, name) for v in value):
        return len(value)
    raise Refused(Reason.MALFORMED)


def _is_numbers(value: Any, depth: int, name: str) -> bool:
    """A non-empty list of numbers, nested `depth` deep."""
    if not isinstance(value, list) or not value:
        return False
    if depth > 1:
        return all(_is_numbers(v, depth - 1, name) for v in value)
    return set(map(type, value)) <= ({int} if name == "input_ids" else {int, float})


def _read_n(params: Any, size: int | None) -> int:
    if params is None:
        return 1
    if isinstance(params, dict):
        return _one_n(params)
    each = params if isinstance(params, list) and size is not None else [params]
    if (each is params and len(each) != size) or not all(isinstance(p, dict) for p in each):
        raise Refused(Reason.MALFORMED)
    counts = {_one_n(p) for p in each}
    if len(counts) != 1:  # SGLang refuses a batch of mixed n
        raise Refused(Reason.MALFORMED)
    return counts.pop()


def _one_n(params: dict[str, Any]) -> int:
    n = base.read_n(params)
    if params.get("beam_width") not in (None, 1):
        raise Refused(Reason.BEAM)
    return n


def _per_item_lists(body: dict[str, Any], size: int | None, n: int) -> tuple[str, ...]:
    """The fields of a body whose list holds a value for each prompt."""
    lists = [name for name, value in body.items() if isinstance(value, list)]
    if size is None:
        # Lists around a lone prompt (of parameters, adapters, ...) are upstream's to judge.
        if any(
            name in _PER_ITEM and name not in (*_PROMPTS, "token_ids_logprob") for name in lists
        ):
            raise Refused(Reason.MALFORMED)
        return ()
    found = []
    for name in lists:
        if name == "token_ids_logprob" and not isinstance(next(iter(body[name]), None), list):
            continue  # one list of ids, for all prompts
        if name not in _PER_ITEM:
            raise Refused(Reason.INSEPARABLE)
        if len(body[name]) != size or (n > 1 and name in _PER_ITEM_N1):
            raise Refused(Reason.MALFORMED)
        found.append(name)
    return tuple(found)


def _without_n(content: dict[str, Any]) -> dict[str, Any]:
    params = content.get("sampling_params")
    if isinstance(params, list):
        return {**content, "sampling_params": [_but_n(each) for each in params]}
    return {**content, "sampling_params": _but_n(params)} if isinstance(params, dict) else content


def _but_n(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "n"}


def _is_error(answer: Any) -> bool:
    return isinstance(answer, dict) and answer.get("error") is not None


def _renamed(native: bytes, rid: str) -> bytes:
    value = orjson.loads(native)
    value["meta_info"]["id"] = rid
    return base.dump(value)


DIALECT = Generate()
