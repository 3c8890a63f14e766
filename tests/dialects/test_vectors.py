"""Vectors as they are kept, and as answers have them."""

from __future__ import annotations

import json
import random
import struct
from base64 import b64decode, b64encode
from typing import Any

import orjson

from sglang_cached_addon.dialects import vectors
from tests.tables import each

SMALL = [1e-4, 9.999e-5, 1e-5, 9.99e-6, 1.5e-6, 1e-7, 3e-38, 1e-45, 0.0, -0.0, 16777216.0, 1e16]


def as_float32(number: float) -> float:
    (found,) = struct.unpack("<f", struct.pack("<f", number))
    return float(found)


def numbers(count: int = 4000) -> list[float]:
    """Numbers of float32, of all sizes."""
    dice = random.Random(0)
    found = [dice.uniform(-1, 1) * 10 ** dice.uniform(-40, 15) for _ in range(count)]
    return [as_float32(sign * number) for number in (*found, *SMALL) for sign in (1, -1)]


def test_float32_in_four_bytes() -> None:
    """A vector of float32 is kept in four bytes a number, in base64 as OpenAI's clients read it. It
    is written with the very digits that SGLang has: on `/v1/embeddings` those of orjson, on
    `/encode` those of Python."""
    vector = numbers()
    kept = vectors.pack(vector)
    assert b64decode(kept) == struct.pack(f"<{len(vector)}f", *vector)
    assert len(kept) < 5.4 * len(vector) < len(orjson.dumps(vector)) / 3
    assert vectors.unpack(kept) == vector
    assert vectors.in_json(kept) == orjson.dumps(vector)
    assert vectors.in_python_json(kept).decode() == json.dumps(vector, separators=(",", ":"))
    assert vectors.in_base64(kept) == kept and vectors.is_readable(kept)


OTHERS: list[Any] = [
    # what no float32 are, or not as they came
    [0.1], [1e300], [1.0, 2], [1], [True], [None], [], [[1.0]], {"a": 1.0}, None, "x",
]  # fmt: skip


@each("vector", OTHERS)
def test_others_are_kept_as_they_come(vector: Any) -> None:
    """What is not a list of float32 loses nothing."""
    assert vectors.pack(vector) is vector
    if not isinstance(vector, str):
        assert json.loads(vectors.in_python_json(vector)) == vector


def test_base64_of_others() -> None:
    """SGLang makes float32 of whatever numbers it has."""
    assert vectors.in_base64([0.1, 1]) == b64encode(struct.pack("<2f", 0.1, 1)).decode()
    assert vectors.in_base64({"a": 1.0}) == {"a": 1.0}


def test_texts_that_are_no_vectors() -> None:
    """They are told from vectors, so that no numbers are made of them."""
    good = vectors.pack([1.5, 2.5])
    for text in (good[:-1], good + "A", good[:4], "!" * 8, f" {good}", good.replace("A", "-"), 1):
        assert not vectors.is_readable(text), text


def test_what_is_no_number() -> None:
    """A vector with something in it that is no number would be another one in each form."""
    for odd in (float("nan"), float("inf"), float("-inf")):
        assert not vectors.is_readable(b64encode(struct.pack("<2f", odd, 1.5)).decode()), odd
    assert not any(map(vectors.is_readable, ([1.5, None], None, {"a": 1.5}, 1)))
    assert all(map(vectors.is_readable, ([1.5, 2], [0.1], [], "")))


def test_vectors_in_answers() -> None:
    """A vector in base64 is found in an answer that is not read, whatever the texts in it say."""
    vector = [1.5, -2.0]
    told = {"data": [{"embedding": vectors.pack(vector), "index": 0}], "a": '"embedding":"x"'}
    for name in ("model", "embedding"):
        sample = orjson.dumps({**told, "model": name, "b": '\\"embedding":""'})
        assert vectors.is_plain(sample)
        assert orjson.loads(vectors.with_numbers(sample))["data"][0]["embedding"] == vector
    for others in ([0.1], [], None):
        assert not vectors.is_plain(orjson.dumps({"data": [{"embedding": others}]}))
    assert not vectors.is_plain(orjson.dumps({**told, "more": {"embedding": [0.1]}}))
