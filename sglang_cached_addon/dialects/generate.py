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
    Generation,
    Mint,
    Recorded,
    Script,
    Split,
    StreamOptions,
    UpstreamCall,
)
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.core.keys import canonical, canonical_each
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    base,
    generate_body,
    generate_display,
    generate_family,
    generate_stream,
    judging,
    reading,
    trimming,
)
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
    "routed_dp_rank": (int, base.NULL),
    "data_parallel_rank": (int, base.NULL),
    "conversation_id": (str, base.NULL),
    "custom_labels": (dict, base.NULL),
    "external_trace_header": (dict, base.NULL),
    "received_time": (int, float, base.NULL),
}
"""Request identity, scheduling and logging: nothing of it reaches the model."""


class Generate:
    """The dialect of POST and PUT `/generate`."""

    name = "sglang-generate"
    routes = (("POST", "/generate"), ("PUT", "/generate"))
    transport = TRANSPORT
    family = generate_family.Family(TRANSPORT)
    display = generate_display.GenerateDisplay()

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        # SGLang answers no prompts with no samples, and its scheduler is not even asked.
        named = {"model": model} if model else {}
        return (
            {**named, "text": []},
            {**named, "text": ".", "sampling_params": {"max_new_tokens": 1}},
        )

    def read(self, body: dict[str, Any]) -> Call:
        reading.refuse_unstorable(body)
        size = generate_body.batch_size(body)
        batched = size is not None
        n = generate_body.read_n(body.get("sampling_params"), size)
        reading.refuse_too_many(size or 1, n)
        media = reading.given(body, generate_body.MEDIA)
        if any(reading.is_elsewhere(body[name], name) for name in media):
            raise Refused(Reason.MEDIA)
        if (batched or n > 1) and reading.given(body, generate_body.FORM_DEPENDENT):
            raise Refused(Reason.INSEPARABLE)
        rids = reading.read_rids(body, n, batched, size or 1)
        content = reading.content_fields(body, TRANSPORT)
        per_item = generate_body.per_item_lists(content, size, n)
        content = generate_body.without_n(content)
        items = canonical_each(content, per_item) if per_item else [canonical(content)]
        stream = StreamOptions() if reading.is_stream(body, generate_stream.UNSTREAMABLE) else None
        params = body.get("sampling_params") or {}
        is_greedy = all(map(reading.is_greedy, params if isinstance(params, list) else [params]))
        return Call(body, tuple(items), n, batched, rids, stream, is_greedy=is_greedy)

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        n, order, _ = trimming.draw(call, shortfalls, server)
        body = dict(call.body)
        if call.batched:
            trimming.take(body, generate_body.per_item_lists(body, len(call.items), call.n), order)
        if n != call.n:
            params = body.get("sampling_params") or {}
            body["sampling_params"] = (
                [{**p, "n": n} for p in params] if isinstance(params, list) else {**params, "n": n}
            )
        return UpstreamCall(body, order, n, trimming.mint_rids(call, body, order, n, mint), server)

    def repeated(self, body: dict[str, Any], count: int) -> dict[str, Any] | None:
        prompts = {name: [body[name]] * count for name in generate_body.PROMPTS if body.get(name)}
        return generate_body.without_n({**body, **prompts})

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        natives = answer if call.batched or sent.n > 1 else [answer]
        if not isinstance(natives, list) or len(natives) != sent.total:
            raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
        generations, refusal = [], None
        for i, native in enumerate(natives):
            meta = native.get("meta_info") if isinstance(native, dict) else None
            if not isinstance(meta, dict):
                raise Refused(Reason.ERROR if judging.is_error(native) else Reason.UNREADABLE)
            finish = meta.get("finish_reason")
            kind = finish.get("type") if isinstance(finish, dict) else None
            error = Reason.ERROR if judging.is_error(native) else None
            refusal = (
                refusal or error or judging.finish_refusal(kind) or judging.weights_refusal(meta)
            )
            count = meta.get("completion_tokens")
            tokens = count if isinstance(count, int) else 0
            generations.append(Generation(sent.order[i // sent.n], judging.dump(native), tokens))
        metas = [native["meta_info"] for native in natives]
        return Split(tuple(generations), refusal, judging.weight_versions(metas))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        natives = [sample for pool in samples for sample in pool]
        if call.rids:
            pairs = zip(natives, call.rids, strict=True)
            natives = [_renamed(native, rid) for native, rid in pairs]
        if call.batched or call.n > 1:
            return b"[" + b",".join(natives) + b"]"
        return natives[0]

    def aborted(self, call: Call, rid: str, now: float) -> bytes:
        meta = {"id": rid, "finish_reason": _ABORTED, "completion_tokens": 0}
        return judging.dump({"text": "", "output_ids": [], "meta_info": meta})

    def record(self, call: Call, sent: UpstreamCall) -> Recorder:
        is_array = call.batched or sent.n > 1
        return generate_stream.Recorder(
            sent.total, is_array, lambda answer: self.split(call, sent, answer)
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

    def rename(self, event: Any, call: Call) -> bool:
        event["meta_info"]["id"] = call.rids[event.get("index", 0)]
        return True

    def cut(self, event: Any) -> None:
        event["meta_info"]["finish_reason"] = _ABORTED


_ABORTED = {"type": "abort", "message": "Abort in waiting queue"}


def _renamed(native: bytes, rid: str) -> bytes:
    value = orjson.loads(native)
    value["meta_info"]["id"] = rid
    return judging.dump(value)


DIALECT = Generate()
