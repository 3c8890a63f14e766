"""What the proxy itself says of errors."""

from __future__ import annotations

import json

from sglang_cached_addon.service.error_bodies import error_body, killed, unreachable


def test_error_body() -> None:
    """An error is written as OpenAI's clients read it."""
    assert json.loads(error_body(502, "BadGateway", "no")) == {
        "error": {"message": "no", "type": "BadGateway", "code": 502}
    }


def test_of_fetches() -> None:
    """Who gets no answer of the server is told which one that is, and what is the matter."""
    told = unreachable("http://x", "refused"), killed("http://x")
    for body, words in zip(told, ("refused", "killed"), strict=True):
        error = json.loads(body)["error"]
        assert error["code"] == 502
        assert "http://x" in error["message"] and words in error["message"]
