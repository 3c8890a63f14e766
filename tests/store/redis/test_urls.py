"""Which URLs name a server."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from sglang_cached_addon.store.redis.server import SharedServer

NAMES = {
    "redis://host": "redis://host",
    "redis://user:secret@host:1/2": "redis://host:1/2",
    "rediss://:secret@host:1/2?ssl_cert_reqs=none": "rediss://host:1/2",
    "unix:///run/redis.sock?db=1&password=secret": "unix:///run/redis.sock",
    "redis+sentinel://u:secret@a:1,b/main/3": "redis+sentinel://a:1,b/main/3",
    "redis+cluster://:secret@host:1": "redis+cluster://host:1",
}


def test_names() -> None:
    """A server is called by its URL without what is secret in it."""
    for url, name in NAMES.items():
        assert SharedServer(url).name == name


NO_URLS = [
    "", "host:6379", "http://host", "redis://", "redis://:secret@host:port",
    "redis://:secret/more@host", "redis://host/name",
    "redis://host?password=secret&decode_responses=true", "redis://host?socket_timeout=secret",
    "redis+sentinel://host:26379", "redis+sentinel://host:secret/main",
    "redis+sentinel://host/main/secret", "redis+cluster://host/3", "unix://",
]  # fmt: skip


def test_no_urls() -> None:
    """What names no server is refused with words of our own, and nothing secret in them."""
    for url in NO_URLS:
        with pytest.raises(ValueError, match=r"^(must|the|unknown|a) ") as e:
            SharedServer(url)
        assert "secret" not in str(e.value), url


def test_without_redis_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without redis-py it is said how to install it."""
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "redis":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'sglang-cached\[redis\]'"):
        SharedServer("redis://host")
