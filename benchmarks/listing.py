"""What an upstream answers to lists, as little work as that can be: one answer for every input.

Pure. The shapes are SGLang's (0.5.23).
"""

from __future__ import annotations

import random
from array import array
from base64 import b64encode
from functools import cache
from typing import Any

import orjson

NUMBERS = 8
"""Of a vector, unless the call says `dimensions`."""

MODEL = "stub"


@cache
def _vector(size: int, is_base64: bool) -> Any:
    dice = random.Random(size)
    numbers = array("f", (dice.gauss(0, size**-0.5) for _ in range(size)))
    if is_base64:
        return b64encode(numbers).decode()
    return orjson.Fragment(orjson.dumps(numbers.tolist()))


def _tokens(text: str) -> int:
    """One for each word."""
    return text.count(" ") + 1


def _usage(texts: list[str]) -> dict[str, Any]:
    tokens = sum(map(_tokens, texts))
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _tokenize(call: dict[str, Any]) -> Any:
    counts = [_tokens(text) for text in call["prompt"]]
    return {"tokens": [[7] * n for n in counts], "count": counts, "max_model_len": 4096}


def _embeddings(call: dict[str, Any]) -> Any:
    vector = _vector(call.get("dimensions", NUMBERS), call.get("encoding_format") == "base64")
    rows = [{"embedding": vector, "index": i, "object": "embedding"}
            for i in range(len(call["input"]))]  # fmt: skip
    return {"data": rows, "model": MODEL, "object": "list", "usage": _usage(call["input"])}


def _classify(call: dict[str, Any]) -> Any:
    rows = [{"index": i, "label": "A", "probs": [0.75, 0.25], "num_classes": 2}
            for i in range(len(call["input"]))]  # fmt: skip
    said = {"id": "classify-1", "object": "list", "created": 1, "model": MODEL, "data": rows}
    return {**said, "usage": _usage(call["input"])}


def _score(call: dict[str, Any]) -> Any:
    texts = [call["query"] + item for item in call["items"]]
    said = {"scores": [[0.25, 0.75]] * len(texts), "pooled_hidden_states": None}
    return {**said, "model": MODEL, "usage": _usage(texts), "object": "scoring"}


def _rerank(call: dict[str, Any]) -> Any:
    return [{"score": 0.5, "document": text, "index": i, "meta_info": None}
            for i, text in enumerate(call["documents"])]  # fmt: skip


ANSWERS = {
    "/tokenize": _tokenize,
    "/v1/tokenize": _tokenize,
    "/v1/embeddings": _embeddings,
    "/v1/classify": _classify,
    "/v1/score": _score,
    "/v1/rerank": _rerank,
}
"""What each of the routes makes of a call for a list."""
