"""Vectors as they are kept, and as answers have them.

Pure. A model's vectors are of float32 or less, so that four bytes a number are all of it: they are
kept as OpenAI's base64 form has them, little-endian, which takes 5.3 bytes a number in a line of
JSON where digits take about 20. JSON has them as the float64 of the same value, whose shortest
digits SGLang writes: these are made again. What is not a list of float32 is kept as it came.
"""

from __future__ import annotations

import json
import sys
from array import array
from base64 import b64encode
from binascii import Error, a2b_base64
from collections.abc import Iterable, Iterator
from math import isfinite
from typing import Any

import orjson

_NUMBER = 4


def pack(vector: Any) -> Any:
    """A vector of an answer as it is kept."""
    if not isinstance(vector, list) or set(map(type, vector)) != {float}:
        return vector
    try:
        packed = array("f", vector)
    except OverflowError:
        return vector
    return _written(packed) if packed.tolist() == vector else vector


def _written(packed: array[float]) -> str:
    if sys.byteorder == "big":
        packed.byteswap()
    return b64encode(packed).decode()


def unpack(kept: str) -> list[float]:
    """The numbers of a vector that is kept in base64. Raises ValueError."""
    packed = array("f")
    try:
        packed.frombytes(a2b_base64(kept, strict_mode=True))
    except Error as e:
        raise ValueError(str(e)) from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def is_readable(vector: Any) -> bool:
    """Whether both forms can be made of what an answer has as a vector: it is one in base64, as it
    would be written again, or a list; and all of it are numbers."""
    if isinstance(vector, list):
        return None not in vector
    try:
        numbers = unpack(vector) if isinstance(vector, str) else []
    except ValueError:
        return False
    return all(map(isfinite, numbers)) and _written(array("f", numbers)) == vector


def in_base64(kept: Any) -> Any:
    """A kept vector as the base64 form has it: SGLang makes float32 of whatever it is."""
    if not isinstance(kept, list) or not set(map(type, kept)) <= {int, float}:
        return kept
    return _written(array("f", kept))


def in_json(kept: Any) -> bytes:
    """A kept vector as a list of numbers, in JSON as orjson writes it."""
    return orjson.dumps(unpack(kept) if isinstance(kept, str) else kept)


def in_python_json(kept: Any) -> bytes:
    """The same as Python's own `json` writes it: `/encode` of SGLang does."""
    if not isinstance(kept, str):
        return json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()
    written = in_json(kept)
    # Of all but those that have this, the digits are the same.
    begins = {max(written.rfind(b",", 0, at), 0) + 1 for at in _places(written, (b"e", b"0.0000"))}
    parts, done = [], 0
    for begin in sorted(begins):
        end = written.find(b",", begin)
        end = end if end >= 0 else len(written) - 1
        parts += [written[done:begin], repr(float(written[begin:end])).encode()]
        done = end
    return b"".join((*parts, written[done:]))


def _places(text: bytes, marks: Iterable[bytes]) -> Iterator[int]:
    """Where any of these stands in a text."""
    for mark in marks:
        at = text.find(mark)
        while at >= 0:
            yield at
            at = text.find(mark, at + 1)


def is_plain(sample: bytes) -> bool:
    """Whether an answer in compact JSON has just one vector, which is in base64."""
    return sample.count(_BASE64) == sample.count(_MEMBER) == 1


def with_numbers(sample: bytes) -> bytes:
    """Such an answer with its vector as a list of numbers."""
    begin = sample.index(_BASE64) + len(_BASE64)
    end = sample.index(b'"', begin)
    return b"".join((sample[: begin - 1], in_json(sample[begin:end].decode()), sample[end + 1 :]))


_MEMBER = b'"embedding":'
"""No text in JSON has this in it: its quotes would be escaped."""

_BASE64 = _MEMBER + b'"'


def packed(row: Any) -> Any:
    """An object of an answer with its vector as it is kept, in place."""
    if isinstance(row, dict) and "embedding" in row:
        row["embedding"] = pack(row["embedding"])
    return row
