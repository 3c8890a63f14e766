"""The values that a call comes to."""

from __future__ import annotations

import json

from sglang_cached_addon.service.findings import (
    error_body,
    model_of,
)


def test_error_body() -> None:
    """OpenAI's clients would show a parse error instead of what went wrong."""
    assert json.loads(error_body(502, "BadGateway", "no")) == {
        "error": {"message": "no", "type": "BadGateway", "code": 502}
    }


def test_model_of() -> None:
    """A model that is none counts as no name."""
    for body, model in (({"model": "m"}, "m"), ({}, ""), ({"model": 1}, ""), ({"model": None}, "")):
        assert model_of(body) == model
