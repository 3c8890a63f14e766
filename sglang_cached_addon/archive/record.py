"""The lines of an archive: JSON objects, of which the first says what the cache knew of its server.

    {"format":1,"state":{..}}
    {"format":1,"key":"<64 hex>","api":"openai-chat","model":{"name":"..","fingerprint":".."},
     "call":{..},"texts":["..",..],"samples":[{"text":"..","finish_reason":"..","tokens":<n>,
     "seconds":<s>,"stored_at":<unix s>,"runs":["..",..],"answer":{..},"deltas":[..]},..]}

`answer` is the whole answer of the API for n=1, and `deltas` are the boundaries of its events,
where it came as a stream: both are what is stored, byte for byte. A sample of a key from which a
rule leaves something out has an `origin`, too: 32 hexadecimal digits, as in the journal. `call` is
what was asked, and `model` is null where nobody knows it. `texts`, `text`, `finish_reason` and
`runs` are for people, and are not read again. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import orjson

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.cache import Addition, Sample

FORMAT = 1
"""The version of the format."""


@dataclass(frozen=True, slots=True)
class Told:
    """What people read of a sample."""

    text: str
    finish_reason: str | None
    runs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Record:
    """A pool, and whose it is."""

    pool: Addition
    fingerprint: str = ""
    """That of its model; empty where nobody knows it."""
    model: str = ""
    """The name of its model."""
    texts: Sequence[str] = ()
    """What was asked, for people."""
    told: Sequence[Told] = ()
    """What its samples say, for people."""


def write_state(state: Mapping[str, Any]) -> bytes:
    """The line that says what a cache knew of its server."""
    return orjson.dumps({"format": FORMAT, "state": state}) + b"\n"


def write(record: Record) -> bytes:
    """The line of a pool."""
    pool = record.pool
    has_model = {"name": record.model, "fingerprint": record.fingerprint}
    value = {
        "format": FORMAT,
        "key": pool.key.hex(),
        "api": pool.dialect,
        "model": has_model if record.fingerprint else None,
        "call": orjson.Fragment(pool.content or b"null"),
        "texts": list(record.texts),
        "samples": [
            _sample(sample, told) for sample, told in zip(pool.samples, record.told, strict=True)
        ],
    }
    return orjson.dumps(value) + b"\n"


def _sample(sample: Sample, told: Told) -> dict[str, Any]:
    return {
        "text": told.text,
        "finish_reason": told.finish_reason,
        "tokens": sample.tokens,
        "seconds": sample.seconds,
        "stored_at": sample.stored_at,
        "runs": list(told.runs),
        "answer": orjson.Fragment(sample.answer),
        **({"deltas": orjson.Fragment(sample.deltas)} if sample.deltas else {}),
        **({"origin": sample.origin.hex()} if sample.origin else {}),
    }


def read(line: bytes) -> Record | dict[str, Any]:
    """What a line says: a pool, or what a cache knew of its server. Raises ValueError, which says
    what is wrong with it."""
    try:
        value = orjson.loads(line)
    except ValueError as e:
        raise ValueError(f"no JSON: {e}") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    if value.get("format") != FORMAT:
        raise ValueError(f"'format' is {value.get('format')!r}, and only {FORMAT} is known")
    if "state" in value:
        state: dict[str, Any] = _typed(value, "state", dict)
        return state
    key = _key(_typed(value, "key", str))
    fingerprint, model = _model(value.get("model"))
    if fingerprint and not key.startswith(keys.prefix(fingerprint)):
        raise ValueError("'key' is not one of the model that 'fingerprint' names")
    call = _typed(value, "call", dict | None)
    samples = [_read_sample(sample) for sample in _typed(value, "samples", list)]
    if not samples:
        raise ValueError("'samples' is empty")
    content = b"" if call is None else _dumped("call", call)
    return Record(Addition(key, _typed(value, "api", str), content, samples), fingerprint, model)


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError("'key' is not 64 hexadecimal digits")
    return key


def _model(value: Any) -> tuple[str, str]:
    if value is None:
        return "", ""
    if not isinstance(value, dict):
        raise ValueError("'model' is no object")
    return _typed(value, "fingerprint", str), _typed(value, "name", str)


def _read_sample(value: Any) -> Sample:
    if not isinstance(value, dict):
        raise ValueError("'samples' has a member that is no object")
    tokens = _typed(value, "tokens", int)
    at, seconds = (float(_typed(value, name, int | float)) for name in ("stored_at", "seconds"))
    if not (isfinite(at) and isfinite(seconds) and at >= 0 and seconds >= 0 and tokens >= 0):
        raise ValueError("a sample has a number below 0")
    answer = _dumped("answer", _typed(value, "answer", dict))
    deltas = _typed(value, "deltas", list | None) if "deltas" in value else None
    steps = b"" if deltas is None else _dumped("deltas", deltas)
    return Sample(answer, at, seconds, tokens, steps, _read_origin(value))


def _read_origin(value: dict[str, Any]) -> bytes:
    try:
        origin = bytes.fromhex(value.get("origin", ""))
    except (TypeError, ValueError):
        raise ValueError("'origin' is not hexadecimal") from None
    return origin


def _typed(value: dict[str, Any], name: str, kind: Any) -> Any:
    """A member; raises ValueError where it is of another type, or missing."""
    if name not in value:
        raise ValueError(f"there is no {name!r}")
    found = value[name]
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"{name!r} is of the wrong type")
    return found


def _dumped(name: str, value: Any) -> bytes:
    try:
        return keys.dumps(value)
    except TypeError:
        raise ValueError(f"{name!r} is nested deeper than can be written") from None
