"""Redirects of upstream, as clients of the proxy see them."""

from __future__ import annotations

from sglang_cached_addon.wire.location import through_proxy
from tests.tables import each

HTTP, HTTPS = "http://sglang:30000", "https://[2001:db8::1]:443"


@each(
    ("value", "upstream", "path"),
    [
        ("http://sglang:30000/v1/models", HTTP, "/v1/models"),
        ("http://sglang:30000/a?b=http://sglang:30000/#c", HTTP, "/a?b=http://sglang:30000/#c"),
        ("HTTP://SGLang:30000/A", HTTP, "/A"),
        ("//sglang:30000/a", HTTP, "/a"),
        ("http://sglang:30000", HTTP, "/"),
        ("http://sglang:30000?a", HTTP, "/?a"),
        ("http://sglang:30000#a", HTTP, "/#a"),
        ("http://sglang/a", "http://sglang:80", "/a"),
        ("http://sglang:80/a", "http://sglang:80", "/a"),
        ("https://[2001:DB8::1]/a", HTTPS, "/a"),
        ("http://sglang:30000//evil.example/", HTTP, "/.//evil.example/"),
        ("http://sglang:30000/\\evil.example/", HTTP, "/./\\evil.example/"),
    ],
)
def test_own(value: str, upstream: str, path: str) -> None:
    """What leads to upstream leads back to the proxy."""
    assert through_proxy(value, upstream) == path


@each(
    "value",
    [
        "",
        "/v1/models",
        "models/",
        "?page=2",
        "http://sglang:30001/a",
        "http://sglang/a",
        "https://sglang:30000/a",
        "http://other:30000/a",
        "http://sglang.evil.example:30000/a",
        "http://me@sglang:30000/a",
        "http://sglang:30000@evil.example/a",
        "http://[::1/a",
        "http://sglang:x/a",
        "mailto:a@sglang",
    ],
)
def test_others(value: str) -> None:
    """What leads elsewhere stays as it is."""
    assert through_proxy(value, HTTP) == value
