"""Canonical bytes of what a call asks for, and the digest that names its pool.

Pure. Two calls share a key only if SGLang would treat them alike: keys of the top level
and of `sampling_params` are sorted there and nowhere else, because inside messages, tools,
schemas and template arguments the order reaches the prompt. Absent, null and a default
stay three different things; an integer in a float parameter is that float (`0` is `0.0`).
How a float is written is a rule of this module, and not of a library.
Does not know which fields are left out: that is each dialect's table.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from sglang_cached_addon.core.policy import Reason, Refused

FORMAT_VERSION = 4
"""Part of every key and of every journal line; raised when either changes its meaning."""

PREFIX = 8
"""How many bytes of a key name the model, so that the keys of one model can be told from others."""

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

_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_FOUR = b"\x01"
"""A byte that no JSON text has, in place of four digits. Integers of fewer than 19 have 64 bits."""

_LARGE_FLOATS = (b"0e0", b"0e+", b"0000.0")
"""What each float above 64 bits has one of, as versions of orjson write it, digits being zeros."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_INTEGER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}(?![0-9.eE])")


def is_quick(raw: bytes) -> bool:
    """Whether a body can be read, checked and named within 0.1 s, in which nobody else is served.
    The costs were measured, on a busy machine: in nanoseconds, of a byte, of a number, of a list
    or an object."""
    if len(raw) <= _QUICK_BYTES:
        return True
    values, holders = raw.count(b","), raw.count(b"[") + raw.count(b"{")
    return 10 * len(raw) + 80 * values + 250 * holders <= 100_000_000


_QUICK_BYTES = 256 * 1024


def parse(raw: bytes) -> dict[str, Any]:
    """A request body as a JSON object.

    Raises `Refused`: not JSON as SGLang's parser (orjson) has it, a repeated key at any
    depth (which SGLang resolves silently), or not an object.
    """
    try:
        body = orjson.loads(raw)
        # What cannot be written could not be sent on, either.
        written = orjson.dumps(body)
    except (ValueError, TypeError):
        raise Refused(Reason.INVALID_JSON) from None
    if _has_repeated_key(raw, written):
        raise Refused(Reason.DUPLICATE_KEY)
    if _may_be_beyond_64_bits(raw, written) and _is_beyond_64_bits(raw):
        raise Refused(Reason.INVALID_JSON)
    if not isinstance(body, dict):
        raise Refused(Reason.MALFORMED)
    return body


# What orjson hides is seen by what is missing when it writes what it has read: to count in
# bytes takes a tenth of the time of a second reading, in which each object could be looked at.


def _has_repeated_key(raw: bytes, written: bytes) -> bool:
    """Whether members are missing: each has a colon, and strings keep theirs."""
    if b"\\u003" in raw:  # it may be an escaped one, which is written as it is
        raw, written = (_STRING.sub(b"", text) for text in (raw, written))
    return raw.count(b":") != written.count(b":")


def _may_be_beyond_64_bits(raw: bytes, written: bytes) -> bool:
    """Whether an integer may have become a float: where such a float was written, and digits
    enough to be one were read, be it in a string."""
    flat = written.translate(_ZEROS)
    if not any(digits in flat for digits in _LARGE_FLOATS):
        return False
    packed = raw.translate(_ZEROS).replace(b"0000", _FOUR)
    return _FOUR * 4 + b"000" in packed or _FOUR * 5 in packed


def _is_beyond_64_bits(raw: bytes) -> bool:
    """Whether an integer of a JSON text has more than 64 bits."""
    numbers = (match[0] for match in _INTEGER.finditer(_STRING.sub(b'""', raw)))
    return any(len(digits) > 20 or not -(1 << 63) <= int(digits) < 1 << 64 for digits in numbers)


def dumps(value: Any) -> bytes:
    """Compact JSON, as SGLang writes it, to be kept: what orjson returns holds on to 4 KB."""
    return bytes(memoryview(orjson.dumps(value)))


def written(number: float) -> str:
    """A float as keys have it, whatever the versions of Python and orjson: the shortest decimal
    digits that read back as the same number, plain from 0.00001 to below 1e16, else with an
    exponent, as in `1e-6` and `1.5e+16`."""
    digits, has_exponent, exponent = repr(number).partition("e")
    if not has_exponent:
        return digits
    if exponent == "-05":
        sign, digits = ("-", digits[1:]) if number < 0 else ("", digits)
        return f"{sign}0.0000{digits.replace('.', '')}"
    return f"{digits}e{int(exponent):+d}"


def _probes() -> list[float]:
    """Floats of every exponent, with one digit, with many, and halfway between two of 16 digits."""
    numbers = [
        float(f"{digits}e{exponent}")
        for exponent in range(-324, 309)
        for digits in ("1", "1.5", "1.2345678901234567")
    ]
    halfway = [(2**50 + whole + 0.25) / 2**k for k in range(0, 1000, 50) for whole in range(4)]
    return [0.0, -0.0, *numbers, *halfway, -1e-5, -1.5e-5, -1e-6, -1e16]


def keeps_to_the_rule(dumps: Callable[[Any], bytes]) -> bool:
    """Whether a version of orjson's `dumps` writes floats as `written` has them."""
    numbers = _probes()
    return dumps(numbers) == f"[{','.join(map(written, numbers))}]".encode()


def _with_written_floats(value: Any) -> Any:
    """A JSON value in which each float is a text that orjson takes over as it is: for versions of
    it that write floats otherwise, as it takes ten times as long."""
    if type(value) is float:
        return orjson.Fragment(written(value))
    if isinstance(value, dict):
        return {name: _with_written_floats(member) for name, member in value.items()}
    return [_with_written_floats(member) for member in value] if isinstance(value, list) else value


def write_by_the_rule(value: Any, *, option: int | None = None) -> bytes:
    """As `write`, with any version of orjson."""
    orjson.dumps(value)  # raises TypeError for what is nested too deeply
    return orjson.dumps(_with_written_floats(value), option=option)


write: Callable[..., bytes] = orjson.dumps if keeps_to_the_rule(orjson.dumps) else write_by_the_rule
"""Compact JSON that is equal for equal values; `option` is one of orjson's."""


def _level(name: str, value: Any) -> Any:
    """A member's value where the order of members says nothing, and numbers may be floats."""
    return float(value) if type(value) is int and name in FLOAT_FIELDS else value


def _top(name: str, value: Any) -> Any:
    """A member's value at the top level."""
    if name == "sampling_params" and isinstance(value, dict):
        return {inner: _level(inner, value[inner]) for inner in sorted(value)}
    return _level(name, value)


def canonical(content: dict[str, Any]) -> bytes:
    """Compact JSON of the fields that make the answer, equal for equal calls."""
    # A copy: what orjson returns holds on to 4 KB.
    return bytes(memoryview(write({name: _top(name, content[name]) for name in sorted(content)})))


def canonical_each(content: dict[str, Any], per_item: Sequence[str]) -> list[bytes]:
    """As `canonical`, for each item of a call whose fields `per_item` are lists with a value for
    each. What all have in common is written once."""
    members, columns = [], []
    for name in sorted(content):
        if name in per_item:
            columns.append(_column(name, content[name]))
            value = b"%b"
        else:
            value = write(_top(name, content[name])).replace(b"%", b"%%")
        members.append(b"%b:%b" % (orjson.dumps(name).replace(b"%", b"%%"), value))
    template = b"{%b}" % b",".join(members)
    return [template % row for row in zip(*columns, strict=True)]


def _column(name: str, values: Sequence[Any]) -> Iterator[bytes]:
    """Each value's JSON, one at a time: what orjson returns holds on to 4 KB."""
    return (write(_top(name, value)) for value in values)


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
