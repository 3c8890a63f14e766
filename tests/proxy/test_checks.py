"""What of the arguments of `start` is refused before anything runs."""

from __future__ import annotations

import pytest

from sglang_cached_addon.proxy.checks import StartError, normal_url

URLS = [
    ("http://localhost:30000", "http://localhost:30000"),
    ("http://localhost:30000/", "http://localhost:30000"),
    ("localhost:30000", "http://localhost:30000"),
    ("localhost", "http://localhost:80"),
    ("10.0.0.1:8000", "http://10.0.0.1:8000"),
    ("http://sglang_1", "http://sglang_1:80"),
    ("https://example.org", "https://example.org:443"),
    ("https://example.org:8443", "https://example.org:8443"),
    ("HTTPS://Example.org", "https://example.org:443"),
    ("http://localhost:", "http://localhost:80"),
    ("http://localhost:65535", "http://localhost:65535"),
    ("http://[::1]:30000", "http://[::1]:30000"),
    ("https://[2001:DB8::1]", "https://[2001:db8::1]:443"),
]


def test_normal_url() -> None:
    """A URL that people type is understood, and leads where they mean."""
    for url, normal in URLS:
        assert normal_url(url) == normal, url


NO_URLS = [
    ("", "must be like"),
    ("http://", "must be like"),
    ("http://:30000", "must be like"),
    ("ftp://localhost:30000", "must be like"),
    ("tcp://localhost:30000", "must be like"),
    ("http://localhost:65536", "range"),
    ("http://localhost:-1", "--sglang-url"),
    ("http://localhost:http", "--sglang-url"),
    ("http://[::1", "--sglang-url"),
    ("http://me:secret@localhost:30000", "credentials"),
    ("http://me@localhost:30000", "credentials"),
    ("http://localhost:30000/v1", "path"),
    ("http://localhost:30000?key=x", "path"),
    ("http://localhost:30000#x", "path"),
    ("http://localhost:0", "--sglang-url"),
    ("http://local host:30000", "--sglang-url"),
    ("http://a..b:30000", "--sglang-url"),
    ("http://*:30000", "--sglang-url"),
]


def test_bad_url() -> None:
    """A mistyped URL is refused with what is wrong, and without the secrets in it."""
    for url, words in NO_URLS:
        with pytest.raises(StartError, match=words) as caught:
            normal_url(url)
        assert "--sglang-url" in str(caught.value), url
        assert "secret" not in str(caught.value), url
