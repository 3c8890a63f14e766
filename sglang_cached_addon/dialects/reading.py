"""What dialects share for reading a request body: what is refused, and what is part of the key.

Pure: takes parsed JSON, raises `Refused` for what is not understood in full.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sglang_cached_addon.core.policy import MAX_N, MAX_SAMPLES, Reason, Refused
from sglang_cached_addon.dialects.base import TransportTable


def content_fields(body: dict[str, Any], transport: TransportTable) -> dict[str, Any]:
    """The fields of a body that are part of the key."""
    return {
        name: value
        for name, value in body.items()
        if not (name in transport and _is_plain(value, transport[name]))
    }


def _is_plain(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, dict):
        return dict in types and set(map(type, value.values())) in (set(), {str}, {bool})
    return type(value) in types


def read_n(holder: Mapping[str, Any]) -> int:
    """The value of `n`. Raises `Refused` unless it is a plain positive integer: what SGLang makes
    of others is its own affair."""
    n = holder.get("n", 1)
    if type(n) is not int or not 1 <= n <= MAX_N:
        raise Refused(Reason.MALFORMED)
    return n


# State that the server holds (sessions), and calls that only mean something to one of a
# pair of prefill and decode servers.
_UNSTORABLE = {
    "session_params": Reason.STATE,
    "previous_response_id": Reason.STATE,
    "bootstrap_host": Reason.DISAGGREGATION,
    "bootstrap_port": Reason.DISAGGREGATION,
    "bootstrap_room": Reason.DISAGGREGATION,
    "bootstrap_pair_key": Reason.DISAGGREGATION,
    "decode_tp_size": Reason.DISAGGREGATION,
    "need_wait_for_mm_inputs": Reason.DISAGGREGATION,
    "num_items_assigned": Reason.DISAGGREGATION,
    "encoder_urls": Reason.DISAGGREGATION,
    "http_worker_ipc": Reason.DISAGGREGATION,
    "kv_hints": Reason.DISAGGREGATION,
    "disagg_prefill_dp_rank": Reason.DISAGGREGATION,
    "kv_transfer_params": Reason.DISAGGREGATION,  # vLLM's
}


def refuse_unstorable(body: dict[str, Any]) -> None:
    """Raises `Refused` for a body with fields that no dialect looks up."""
    for name in given(body, _UNSTORABLE):
        raise Refused(_UNSTORABLE[name])
    if body.get("use_beam_search"):  # vLLM's, where `n` is the width
        raise Refused(Reason.BEAM)


def is_stream(body: dict[str, Any], unstreamable: Collection[str]) -> bool:
    """Whether a body asks for a stream; null does not, wherever it is taken. Raises `Refused` if it
    does so together with one of these fields, for which streams have another form."""
    stream = body.get("stream")
    if stream is None:
        return False
    if type(stream) is not bool:
        raise Refused(Reason.MALFORMED)
    if stream and any(body.get(name) for name in unstreamable):
        raise Refused(Reason.STREAM)
    return stream


def given(body: dict[str, Any], names: Collection[str]) -> list[str]:
    """The names that have a value in the body."""
    if body.keys().isdisjoint(names):
        return []
    return [name for name in names if body.get(name) is not None]


def is_greedy(params: Mapping[str, Any]) -> bool:
    """Whether sampling parameters have the likeliest token chosen always."""
    temperature: Any = params.get("temperature")
    if type(temperature) in (int, float) and 0 <= temperature < _LEAST_TEMPERATURE:
        return True
    return type(params.get("top_k")) is int and params["top_k"] == 1


_LEAST_TEMPERATURE = 1e-6
"""Below this temperature SGLang does not sample."""


def refuse_too_many(size: int, n: int) -> None:
    """Raises `Refused` for a call for so many samples that others would wait while each of its
    prompts is named."""
    if size * n > MAX_SAMPLES:
        raise Refused(Reason.TOO_LARGE)


def read_rids(body: dict[str, Any], n: int, batched: bool, size: int) -> tuple[str, ...]:
    """The ids that SGLang would have in its answer to this body.

    A string names a single prompt as it is and the items of a batch as `x_0`, `x_1`, ...;
    with `n > 1` every sample gets an id of its own and none is echoed.
    """
    rid = body.get("rid")
    if rid is None:
        return ()
    if isinstance(rid, list):
        is_one_each = batched and len(rid) == size and all(isinstance(r, str) for r in rid)
        if not is_one_each or len(set(rid)) != size:
            raise Refused(Reason.MALFORMED)
        rids = tuple(rid)
    elif isinstance(rid, str):
        rids = tuple(f"{rid}_{i}" for i in range(size)) if batched else (rid,)
    else:
        raise Refused(Reason.MALFORMED)
    return rids if n == 1 else ()


def is_elsewhere(value: Any, name: str = "") -> bool:
    """Whether a media value, however nested, refers to something outside of the body; `name` is
    that of the field that has it.

    URLs and paths are read by the server at the time of the call; `data:` and bare
    base64 are content, but for sound, where SGLang takes whatever is bare for a path.
    """
    if value is None:
        return False
    if isinstance(value, str):
        is_bare = name not in _SOUND and _is_base64(value)
        return not (value.startswith("data:") or is_bare)
    if isinstance(value, dict):
        found = [(source, value[source]) for source in _SOURCES if source in value]
        return any(is_elsewhere(v, source if source in _SOUND else name) for source, v in found)
    if isinstance(value, list):
        return any(is_elsewhere(member, name) for member in value)
    return True


_SOUND = ("audio", "audio_url", "audio_data")
_SOURCES = ("url", "path", "file_id", "image", "video", "audio")
"""What may refer to something else in an object that stands for a picture, a video or a sound."""


def refuse_media(messages: Any) -> None:
    """Raises `Refused` where the server fetches a part of a chat from elsewhere."""
    contents = [m.get("content") for m in messages if isinstance(m, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    if any(_names_media(part) for part in parts if isinstance(part, dict)):
        raise Refused(Reason.MEDIA)


def _names_media(part: dict[str, Any]) -> bool:
    """Whether a part of a message is fetched by the server from elsewhere."""
    return any(
        is_elsewhere(value, name)
        for name, value in part.items()
        if name.endswith("_url") or name in ("image", "video", "audio", "url", "file")
    )


def refuse_images(body: dict[str, Any]) -> None:
    """Raises `Refused` where any of a body's `images` is fetched by the server."""
    images = body.get("images") or []
    urls = [image.get("url") if isinstance(image, dict) else image for image in images]
    if any(not isinstance(url, str) or is_elsewhere(url) for url in urls):
        raise Refused(Reason.MEDIA)


_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n")


def _is_base64(value: str) -> bool:
    # A path can consist of these letters too. No picture is this short, and of those that
    # begin with a slash only JPEG is none.
    is_path = value.startswith("/") and not value.startswith("/9j/")
    return len(value) >= 64 and not is_path and _BASE64.issuperset(value)
