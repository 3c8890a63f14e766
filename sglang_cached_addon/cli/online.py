"""A cache behind a running proxy, which is asked over HTTP.

Knows how the proxy's own routes are called, and nothing of what they answer.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import orjson

from sglang_cached_addon.cli.reach import CacheError

CONNECT_SECONDS, SECONDS = 10.0, 60.0
"""How long a connection and an answer are waited for: a search goes through much."""

CHANGE_SECONDS = 3600.0
"""The same for what is changed: for a clear the file is written anew, however large it is."""


class Online:
    """One proxy, asked on one connection."""

    is_running = True

    def __init__(self, url: str, token: str = "") -> None:
        """Connects; raises `CacheError`. `token` is the admin token, empty where there is none."""
        self.name = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as e:
            raise CacheError(f"{url}: {e}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise CacheError(f"{url}: must be like http://localhost:30001")
        self._base = parts.path.rstrip("/")
        is_tls = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=CONNECT_SECONDS)
        try:
            self._connection.connect()
        except OSError as e:
            raise CacheError(f"{self.name} does not answer: {e.strerror or e}") from None

    def ask(
        self, method: str, path: str, query: Mapping[str, Any] = {}, body: Any = None
    ) -> dict[str, Any]:
        """As `Cache.ask`."""
        asked = urlencode({name: value for name, value in query.items() if value is not None})
        target = f"{self._base}{path}{f'?{asked}' if asked else ''}"
        data = None if body is None else orjson.dumps(body)
        headers = {**self._headers, **({"Content-Type": "application/json"} if data else {})}
        self._connection.timeout = SECONDS if method == "GET" else CHANGE_SECONDS
        if self._connection.sock:
            self._connection.sock.settimeout(self._connection.timeout)
        try:
            self._connection.request(method, target, data, headers)
            answer = self._connection.getresponse()
            status, raw = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as e:
            raise CacheError(f"{self.name}: no answer: {str(e) or type(e).__name__}") from None
        return read(status, raw, f"{self.name}{path}")

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()


def read(status: int, raw: bytes, name: str) -> dict[str, Any]:
    """What an answer of `name` says; raises `CacheError` for one with an error in it."""
    try:
        value = orjson.loads(raw)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CacheError(f"{name} is no route of sglang-cached: status {status}, and no JSON")
    if status == 200:
        return value
    error = value.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    keys = ", ".join(value.get("keys", ()))
    said = str(message or f"{name}: status {status}")
    raise CacheError(f"{said}: {keys}" if keys else said)
