"""Requests that change the model behind a URL: its weights, its settings, its adapters; and those
that may end calls of others.

Pure: takes a method, a target and a body, says what may be another thing afterwards. Which model
that is, and whether upstream carries it out, is not known here.
"""

from __future__ import annotations

import re
from enum import StrEnum

import orjson


class Change(StrEnum):
    """What a request may change of what upstream would answer."""

    MODEL = "model"
    ADAPTER = "adapter"


_CHANGES = {
    "begin_weight_update": Change.MODEL,
    "end_weight_update": Change.MODEL,
    "update_weight_version": Change.MODEL,
    # With `reset_tensors` it overwrites the weights.
    "weights_checker": Change.MODEL,
    # The thresholds of speculative decoding, which decide what is taken.
    "set_internal_state": Change.MODEL,
    # What is released is not there until it is loaded anew.
    "release_memory_occupation": Change.MODEL,
    "resume_memory_occupation": Change.MODEL,
}
_CHANGES_BEGIN = {
    # _from_disk, _from_tensor, _from_distributed, _from_ipc, and what will come
    "update_weights": Change.MODEL,
    # _from_tensors
    "load_lora_adapter": Change.ADAPTER,
    "unload_lora_adapter": Change.ADAPTER,
}

_ENDS_CALLS = frozenset(("abort_request", "pause_generation"))

# A character a byte is enough: all names of routes are ASCII.
_ESCAPED = re.compile("%([0-9A-Fa-f]{2})")


def change(method: str, path: str) -> Change | None:
    """What a request with this method and target may change; None if nothing.

    Any segment counts, as the server may be mounted under a prefix, and proxies before it resolve
    `.` and `..`, decode once more, or cut what follows a `;`. Any method counts but HEAD and
    OPTIONS: some of these routes take a GET. Over-inclusive, as it may well be: what upstream
    refuses changes nothing, and a change that is overlooked would make answers wrong.
    """
    if method in ("HEAD", "OPTIONS"):
        return None
    found = [what for name in _names(path) if (what := _change(name))]
    return Change.MODEL if Change.MODEL in found else next(iter(found), None)


def ends_calls(path: str) -> bool:
    """Whether a request with this target may end calls under way, of whomever: as over-inclusive,
    for the same reasons."""
    return any(name in _ENDS_CALLS for name in _names(path))


def _names(path: str) -> list[str]:
    """The segments of a target, as some server may read them."""
    # Servers cut a fragment, too, though no client should send one.
    plain = re.split("[?#]", path, maxsplit=1)[0]
    for _ in range(_DECODINGS):
        plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), plain)
    segments = (segment.strip() for segment in re.split(r"[/\\]", plain))
    return [segment.partition(";")[0].lower() for segment in segments]


def _change(name: str) -> Change | None:
    if name in _CHANGES:
        return _CHANGES[name]
    return next((what for begin, what in _CHANGES_BEGIN.items() if name.startswith(begin)), None)


_DECODINGS = 3
"""How many times a path is decoded, as proxies on its way may do."""


def adapter_name(body: bytes) -> str | None:
    """The adapter that a body of a load or unload request names; None if it cannot be read, and
    then it may have been any."""
    try:
        value = orjson.loads(body)
    except ValueError:
        return None
    name = value.get("lora_name") if isinstance(value, dict) else None
    return name if isinstance(name, str) and name else None
