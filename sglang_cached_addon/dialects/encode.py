"""SGLang's native `/encode` and `/classify`: one vector for each text, list of ids, or pair.

Both take the same body, and answer alike. A lone input is answered by an object, a list by an array
in its order. A sample is such an object, with its vector in base64. Checked against SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import orjson

from sglang_cached_addon.core.call import Call, Generation, Split, UpstreamCall
from sglang_cached_addon.core.policy import Reason, Refused
from sglang_cached_addon.dialects import (
    base,
    judging,
    listing,
    listing_display,
    reading,
    vectors,
)

_MEDIA = ("image_data", "video_data", "audio_data")

# In a list a list in one of these holds a value for each input.
_PER_ROW = ("text", "input_ids", "rid", "lora_path", "embed_overrides", *_MEDIA)

TRANSPORT: base.TransportTable = {
    "rid": (str, list, base.NULL),
    "log_metrics": (bool,),
    "background": (bool,),
    "priority": (int, base.NULL),
    "routing_key": (str, base.NULL),
    "external_trace_header": (dict, base.NULL),
    "received_time": (int, float, base.NULL),
}
"""Request identity, scheduling and logging: nothing of it reaches the model."""


class Encode(listing.Listing):
    """The dialect of POST and PUT `/encode` and `/classify`."""

    name = "sglang-encode"
    routes = tuple(
        (method, path) for path in ("/encode", "/classify") for method in ("POST", "PUT")
    )
    transport = TRANSPORT
    display = listing_display.ListDisplay(
        ("text", "input_ids"), listing_display.of_list(listing_display.vector)
    )
    is_verbatim = False

    def probes(self, model: str) -> Sequence[dict[str, Any]]:
        # SGLang answers no texts with no vectors.
        named = {"model": model} if model else {}
        return ({**named, "text": []}, {**named, "text": "."})

    def columns(self, body: dict[str, Any]) -> tuple[str, ...]:
        media = reading.given(body, _MEDIA)
        if any(reading.is_elsewhere(body[name], name) for name in media):
            raise Refused(Reason.MEDIA)
        text: Any = body.get("text")
        ids = body.get("input_ids")
        is_pairs = body.get("is_cross_encoder_request", False)
        if (text is None) == (ids is None) or type(is_pairs) is not bool:
            raise Refused(Reason.MALFORMED)
        if is_pairs:
            if not _are_pairs(text):
                raise Refused(Reason.MALFORMED)
            return listing.columns_of(body, len(text), _PER_ROW)
        if text is None:
            count = listing.count_of(ids, texts=False)
        else:
            count = listing.count_of(text, ids=False)
        return listing.columns_of(body, count, _PER_ROW)

    def split(self, call: Call, sent: UpstreamCall, answer: Any) -> Split:
        natives = answer if call.batched else [answer]
        if not isinstance(natives, list) or len(natives) != sent.total:
            raise Refused(Reason.ERROR if judging.is_error(answer) else Reason.UNREADABLE)
        refusal = None
        for native in natives:
            meta = native.get("meta_info") if isinstance(native, dict) else None
            if judging.is_error(native):
                raise Refused(Reason.ERROR)
            if not isinstance(meta, dict) or _is_odd(native.get("embedding")):
                raise Refused(Reason.UNREADABLE)
            finish = meta.get("finish_reason")
            kind = finish.get("type") if isinstance(finish, dict) else None
            refusal = refusal or judging.finish_refusal(kind) or judging.weights_refusal(meta)
        metas = [native["meta_info"] for native in natives]
        parts = listing.first_of_each(sent.order, natives)
        generations = [Generation(i, judging.dump(vectors.packed(one)), 0) for i, one in parts]
        return Split(tuple(generations), refusal, judging.weight_versions(metas))

    def write(self, call: Call, samples: Sequence[Sequence[bytes]]) -> bytes:
        rids = call.rids or [None] * len(listing.rows_of(call))
        pairs = zip(listing.spread(call, samples), rids, strict=True)
        shown = (_shown(sample, rid) for sample, rid in pairs)
        if not call.batched:
            return next(shown)
        answer = BytesIO()
        listing.write_list(answer, shown)
        return answer.getvalue()


def _is_odd(vector: Any) -> bool:
    """Whether a vector is missing, or something in it is no number."""
    return isinstance(vector, str | None) or (isinstance(vector, list) and None in vector)


def _shown(sample: bytes, rid: str | None) -> bytes:
    native = orjson.loads(sample)
    if rid is not None:
        native["meta_info"]["id"] = rid
    vector = orjson.Fragment(vectors.in_python_json(native["embedding"]))
    return judging.dump({**native, "embedding": vector})


def _are_pairs(text: Any) -> bool:
    """Whether it is a list of pairs of texts."""
    return (
        isinstance(text, list)
        and bool(text)
        and all(isinstance(each, list) and list(map(type, each)) == [str, str] for each in text)
    )


DIALECT = Encode()
