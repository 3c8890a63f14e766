"""How people see calls of APIs that generate nothing."""

from __future__ import annotations

from typing import Any

import orjson

from sglang_cached_addon.dialects import installed, legible, rendering, vectors
from sglang_cached_addon.dialects.listing_display import numbers, vector
from tests.tables import each

VECTOR = [k / 64 for k in range(1024)]
USAGE = {"prompt_tokens": 7, "total_tokens": 7}

SEEN: dict[str, tuple[str, Any, Any, list[str]]] = {
    "vectors": (
        "/v1/embeddings",
        {"model": "m", "input": ["one", "two", "one"]},
        {"data": [{"embedding": VECTOR, "index": k} for k in range(3)], "model": "m",
         "usage": USAGE},
        ["openai-embedding · model m · prompt tokens: 7", "input 1 of 3", "input 3 of 3",
         "1,024 numbers: [0.0,0.015625,0.03125,0.046875,0.0625,0.078125, ...] (digest "],
    ),
    "pairs": (
        "/encode",
        {"text": [["a", "b"]], "is_cross_encoder_request": True},
        [{"embedding": [0.5, 1.5], "meta_info": {"id": "x"}}],
        ["input 1 of 1", "2 numbers: [0.5,1.5]"],
    ),
    "classes": (
        "/v1/classify",
        {"input": ["one", "two"]},
        {"data": [{"index": 0, "label": "good", "probs": [0.75, 0.25]}]},
        ["good (2 numbers: [0.75,0.25])"],
    ),
    "scores": (
        "/v1/score",
        {"query": "q", "items": ["one", "two"], "label_token_ids": [1, 2]},
        {"scores": [[0.75, 0.25], [0.5, 0.5]]},
        ["input 1 of 2", "2 numbers: [0.75,0.25]", "input 2 of 2", "2 numbers: [0.5,0.5]"],
    ),
    "ranks": (
        "/v1/rerank",
        {"query": "q", "documents": ["one", "two"]},
        [{"score": 0.75, "index": 1}, {"score": 0.5, "index": 0}],
        ["input 2 of 2", "score 0.75", "input 1 of 2", "score 0.5"],
    ),
    "decisions": (
        "/v1/decisions",
        {"input": "i", "questions": [{"id": "a"}]},
        {"answers": {"a": {"choice": "yes"}}},
        ['a: {"choice":"yes"}'],
    ),
    "tokens": (
        "/tokenize",
        {"prompt": ["one", "two"]},
        {"tokens": [[1, 2], list(range(100))], "count": [2, 100]},
        ["2 tokens: [1,2]", "100 tokens: [0,1,2,3,4,5, ...] (digest "],
    ),
    "texts": ("/detokenize", {"tokens": [1, 2]}, {"text": "one\ntwo"}, ["one", "two"]),
    "a count": (
        "/v1/messages/count_tokens",
        {"messages": [{"role": "user", "content": "hi"}]},
        {"input_tokens": 9},
        ["9 tokens"],
    ),
}  # fmt: skip


@each("case", SEEN)
def test_answers(case: str) -> None:
    """What is said of each row is shown, beside the place that it has in the client's list."""
    path, asked, answer, wanted = SEEN[case]
    dialect = installed()["POST", path]
    data, body = orjson.dumps(answer), orjson.dumps(asked)
    lines = [text for _, text in rendering.answer(dialect, data, [], asked=body, is_stream=False)]
    found = iter(lines)
    for part in wanted:
        assert any(part in line for line in found), (part, lines)


ASKED: dict[str, tuple[str, Any, list[str]]] = {
    "a text": ("/v1/embeddings", {"input": "one"}, ["one"]),
    "texts": ("/v1/embeddings", {"input": ["one", "two"]}, ["one", "two"]),
    "ids": ("/v1/embeddings", {"input": [1, 2]}, ["[1,2]"]),
    "objects": ("/v1/embeddings", {"input": [{"text": "one"}]}, ['{"text":"one"}']),
    "a pair": ("/encode", {"text": [["a", "b"]]}, ['["a","b"]']),
    "a document": ("/v1/rerank", {"query": "q", "documents": "one"}, ["q", "one"]),
    "a chat": ("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}, ["hi"]),
}


@each("case", ASKED)
def test_requests(case: str) -> None:
    """The texts of a call are told: one for each row, or that of the one row that is stored."""
    path, asked, wanted = ASKED[case]
    assert legible.asked(installed()["POST", path], asked) == wanted


def test_differences_are_seen() -> None:
    """Two vectors that differ in their last number look different, and one looks the same in
    numbers as in base64."""
    other = [*VECTOR[:-1], 0.5]
    said = [vector({"embedding": each}) for each in (VECTOR, other, vectors.pack(VECTOR))]
    assert said[0] == said[2] != said[1]
    long = [["x" * 400], ["x" * 399 + "y"]]
    assert numbers(long[0]) != numbers(long[1])
