"""Calls as they are written down."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang_cached_addon.cli.requests import Request, read
from tests.tables import each

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

READ: dict[str, tuple[Any, str, Request]] = {
    "a chat": ({"messages": []}, "", Request(CHAT, b'{"messages": []}')),
    "a prompt": ({"prompt": "a"}, "", Request(TEXT, b'{"prompt": "a"}')),
    "a text": ({"text": "a"}, "", Request("/generate", b'{"text": "a"}')),
    "items": ({"input": "a", "instructions": "b"}, "",
              Request("/v1/responses", b'{"input": "a", "instructions": "b"}')),
    "tokens": ({"input_ids": [1]}, "", Request("/generate", b'{"input_ids": [1]}')),
    "a path that is given": ({"text": "a"}, "/x", Request("/x", b'{"text": "a"}')),
    "with its path": ({"path": "/x", "body": {"a": 1}}, "/y", Request("/x", b'{"a":1}')),
    "of a batch": (
        {"custom_id": "7", "method": "POST", "url": CHAT, "body": {"a": 1}},
        "",
        Request(CHAT, b'{"a":1}', "7"),
    ),
    "a body with a url": ({"text": 1, "url": "x"}, "/y", Request("/y", b'{"text": 1, "url": "x"}')),
}  # fmt: skip


@each("case", READ)
def test_read(case: str) -> None:
    """Each way of writing is understood, and a body by itself stays byte for byte as it is."""
    value, path, expected = READ[case]
    assert read(f" {json.dumps(value)}\n".encode(), path) == expected


@each(
    ("body", "path"),
    [
        ({"query": "a", "documents": ["b"]}, "/v1/rerank"),
        ({"items": [], "label_token_ids": []}, "/v1/score"),
        ({"input": "a", "questions": []}, "/v1/decisions"),
        ({"state": "a", "questions": {}}, "/v1/systemone"),
        ({"tokens": [1]}, "/v1/detokenize"),
    ],
)
def test_guessed(body: Any, path: str) -> None:
    """The members that only one API has tell the path."""
    assert read(json.dumps(body).encode()).path == path


BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "not JSON"),
    "no object": (b"[]", "not a JSON object"),
    "nothing to guess by": (b'{"a":1}', "cannot be guessed, .* --path"),
    "an input for several": (b'{"input":"a"}', "cannot be guessed, .* --path"),
    "another method": (b'{"url":"/x","method":"GET","body":{}}', "only POST"),
    "no path": (b'{"url":"http://x/y","body":{}}', "has to begin with /"),
}


@each("case", BAD)
def test_bad(case: str) -> None:
    """What is wrong is told."""
    raw, told = BAD[case]
    with pytest.raises(ValueError, match=told):
        read(raw)
