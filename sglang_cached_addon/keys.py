"""Canonical bytes of what a call asks for, and the digest that names its pool.

Pure. Two calls share a key only if SGLang would treat them alike: keys of the top level
and of `sampling_params` are sorted there and nowhere else, because inside messages, tools,
schemas and template arguments the order reaches the prompt. Absent, null and a default
stay three different things; an integer in a float parameter is that float (`0` is `0.0`).
Does not know which fields are left out: that is each dialect's table.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import orjson

from sglang_cached_addon.policy import Reason, Refused

FORMAT_VERSION = 2
"""Part of every key and of every journal line; raised when either changes its meaning."""

PREFIX = 8
"""Bytes of a key that name the model, so that what belongs to one can be told from the others."""

FLOAT_FIELDS = frozenset(
    {
        "temperature",
        "top_p",
        "min_p",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
    }
)
"""Parameters that SGLang reads as floats. In the others `8` and `8.0` differ: `/generate`
refuses a float where it wants an integer."""


class _DuplicateKey(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _DuplicateKey
    return members


_strict = json.JSONDecoder(object_pairs_hook=_unique)


def parse(raw: bytes) -> dict[str, Any]:
    """A request body as a JSON object.

    Raises `Refused`: not JSON as SGLang's parser (orjson) has it, a repeated key at any
    depth (which SGLang resolves silently), or not an object.
    """
    try:
        orjson.loads(raw)
        # The second reading sees what orjson hides: repeated keys, integers beyond 64 bits.
        body = _strict.decode(raw.decode())
        # What cannot be written could not be sent on, either.
        orjson.dumps(body)
    except _DuplicateKey:
        raise Refused(Reason.DUPLICATE_KEY) from None
    except (ValueError, TypeError, RecursionError):
        raise Refused(Reason.INVALID_JSON) from None
    if not isinstance(body, dict):
        raise Refused(Reason.MALFORMED)
    return body


def dumps(value: Any) -> bytes:
    """Compact JSON, as SGLang writes it, to be kept: what orjson returns holds on to 4 KB."""
    return bytes(memoryview(orjson.dumps(value)))


def _sorted_level(members: dict[str, Any]) -> dict[str, Any]:
    return {
        name: float(value) if type(value) is int and name in FLOAT_FIELDS else value
        for name, value in sorted(members.items())
    }


def canonical(content: dict[str, Any]) -> bytes:
    """Compact JSON of the fields that make the answer, equal for equal calls."""
    top = _sorted_level(content)
    sampling_params = top.get("sampling_params")
    if isinstance(sampling_params, dict):
        top["sampling_params"] = _sorted_level(sampling_params)
    return dumps(top)


def prefix(fingerprint: str) -> bytes:
    """The 8 bytes that each key of a model begins with."""
    return hashlib.sha256(fingerprint.encode()).digest()[:PREFIX]


class Digester:
    """Names the pools of one API, model and tenant: SHA-256 over parts that cannot run into each
    other."""

    def __init__(
        self, fingerprint: str, dialect: str, tenant: bytes = b"", adapters: str = ""
    ) -> None:
        """`adapters` stands for the epochs of all adapters: a body is named before it is read, so
        that it may select any."""
        self._prefix = prefix(fingerprint)
        self._begun = hashlib.sha256()
        for part in (b"%d" % FORMAT_VERSION, fingerprint.encode(), dialect.encode(), tenant):
            _add(self._begun, part)
        self._raw = self._begun.copy()
        _add(self._raw, b"raw")
        _add(self._raw, adapters.encode())

    def key(self, content: bytes, adapters: str = "") -> bytes:
        """The 32-byte key of a pool; `adapters` stands for the epochs of those that it selects."""
        sha = self._begun.copy()
        _add(sha, content)
        if adapters:
            _add(sha, adapters.encode())
        return self._prefix + sha.digest()[: 32 - PREFIX]

    def raw(self, body: bytes) -> bytes:
        """16 bytes that name a body as it came, before it is read."""
        sha = self._raw.copy()
        sha.update(body)
        return sha.digest()[:16]


def _add(sha: hashlib._Hash, part: bytes) -> None:
    sha.update(b"%d:" % len(part))
    sha.update(part)


def digest(fingerprint: str, dialect: str, content: bytes) -> bytes:
    """The key of a pool, for one that is asked for alone."""
    return Digester(fingerprint, dialect).key(content)
