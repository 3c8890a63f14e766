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


def is_packed(vector: Any) -> bool:
    """Whether a text is a vector in base64, as it would be written again."""
    if not isinstance(vector, str):
        return False
    try:
        return _written(array("f", unpack(vector))) == vector
    except ValueError:
        return False


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
    if b"e" not in written and b"0.0000" not in written:
        return written
    # Of all but these, the digits are the same.
    numbers = written[1:-1].split(b",")
    return b"[%b]" % b",".join(
        [_in_python(n) if b"e" in n or b"0.0000" in n else n for n in numbers]
    )


def _in_python(number: bytes) -> bytes:
    return repr(float(number)).encode()


def packed(row: Any) -> Any:
    """An object of an answer with its vector as it is kept, in place."""
    if isinstance(row, dict) and "embedding" in row:
        row["embedding"] = pack(row["embedding"])
    return row
