"""The values that a call comes to."""

from __future__ import annotations

import json

from sglang_cached_addon.service.findings import error_body, model_of


def test_error_body() -> None:
    """An error is written as OpenAI's clients read it."""
    assert json.loads(error_body(502, "BadGateway", "no")) == {
        "error": {"message": "no", "type": "BadGateway", "code": 502}
    }


def test_model_of() -> None:
    """A body names its model by a text, or it names none."""
    for body, model in (({"model": "m"}, "m"), ({}, ""), ({"model": 1}, ""), ({"model": None}, "")):
        assert model_of(body) == model
