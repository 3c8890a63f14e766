"""Answers of ours as mitmproxy's responses."""

from __future__ import annotations

from sglang_cached_addon.core.outcome import NOTHING, Kind, Outcome
from sglang_cached_addon.proxy import responses
from sglang_cached_addon.service.asking import Reply
from sglang_cached_addon.service.findings import Hit

URL = "http://10.0.0.7:30000"
HIT = Hit(b"{}", Outcome(Kind.HIT), NOTHING, "m")


def test_answered() -> None:
    """Status and body are the answer's, the length is the body's; a head alone has none."""
    for answer, status in ((HIT, 200), (Reply(429, (), b"{}", Outcome(Kind.MISS)), 429)):
        response = responses.answered(answer, URL, b"r1", b"abc")
        assert (response.status_code, response.content) == (status, b"abc")
        assert response.headers["content-length"] == "3"
        assert response.headers["X-Request-Id"] == "r1"
    response = responses.answered(HIT, URL, b"r1")
    assert response.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in response.headers
