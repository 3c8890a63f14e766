"""The proxy's own routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sglang_cached_addon.routes import ROUTES, Reply, answer, find


class Proxy:
    """What the routes see here; `calls` tells what was done."""

    def __init__(self, error: OSError | None = None) -> None:
        self.calls: list[str] = []
        self.error = error

    def stats(self) -> dict[str, Any]:
        self.calls.append("stats")
        return {"hits": 1}

    def info(self) -> dict[str, Any]:
        self.calls.append("info")
        return {"version": "x"}

    async def health(self) -> dict[str, Any]:
        self.calls.append("health")
        return {"status": "ok"}

    async def clear(self) -> dict[str, Any]:
        self.calls.append("clear")
        if self.error:
            raise self.error
        return {"cleared": True}


def ask(path: str, method: str, view: Proxy, is_local: bool = True) -> Reply:
    route = find(path)
    assert route
    return asyncio.run(answer(route, method, is_local, view))


@pytest.mark.parametrize(
    ("path", "methods", "local_only"),
    [
        ("/cache/stats", ("GET", "HEAD"), False),
        ("/cache/info", ("GET", "HEAD"), False),
        ("/cache/clear", ("POST",), True),
        ("/health", ("GET", "HEAD"), False),
    ],
)
def test_table(path: str, methods: tuple[str, ...], local_only: bool) -> None:
    """A documented route would be missing, or open to more than it should be."""
    route = ROUTES[path]
    assert (route.path, route.methods, route.local_only) == (path, methods, local_only)


def test_nothing_else() -> None:
    """A route of SGLang would be taken over unawares."""
    assert set(ROUTES) == {"/cache/stats", "/cache/info", "/cache/clear", "/health"}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/cache/stats", "/cache/stats"),
        ("/cache/stats?", "/cache/stats"),
        ("/cache/stats?a=b?c", "/cache/stats"),
        ("/health?x=/cache/clear", "/health"),
        ("/cache/stats/", None),
        ("/cache/statsx", None),
        ("/Cache/stats", None),
        ("/cache", None),
        ("/cache/", None),
        ("/health_generate", None),
        ("/generate", None),
        ("/generate?/cache/stats", None),
        ("//cache/stats", None),
        ("/v1/cache/stats", None),
        ("", None),
        ("?", None),
    ],
)
def test_find(path: str, found: str | None) -> None:
    """SGLang's answer would be hidden, or ours not be found."""
    route = find(path)
    assert (route.path if route else None) == found


@pytest.mark.parametrize(
    ("path", "method", "call", "body"),
    [
        ("/cache/stats", "GET", "stats", {"hits": 1}),
        ("/cache/stats", "HEAD", "stats", {"hits": 1}),
        ("/cache/info", "GET", "info", {"version": "x"}),
        ("/cache/info", "HEAD", "info", {"version": "x"}),
        ("/health", "GET", "health", {"status": "ok"}),
        ("/health", "HEAD", "health", {"status": "ok"}),
        ("/cache/clear", "POST", "clear", {"cleared": True}),
        ("/cache/clear?now=1", "POST", "clear", {"cleared": True}),
    ],
)
def test_answers(path: str, method: str, call: str, body: dict[str, Any]) -> None:
    """A route would show or do what another one is for."""
    view = Proxy()
    reply = ask(path, method, view)
    assert (reply.status, json.loads(reply.body), reply.headers) == (200, body, {})
    assert view.calls == [call]


@pytest.mark.parametrize("path", sorted(ROUTES))
@pytest.mark.parametrize("is_local", [True, False])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", ""])
def test_other_methods(path: str, is_local: bool, method: str) -> None:
    """A wrong method would do something, or not tell which one is right."""
    view = Proxy()
    reply = ask(path, method, view, is_local)
    assert reply.status == 405
    assert reply.headers == {"Allow": ", ".join(ROUTES[path].methods)}
    assert json.loads(reply.body)["error"]["code"] == 405
    assert view.calls == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_clear_is_not_a_link(method: str) -> None:
    """Whoever follows a link would empty the cache."""
    view = Proxy()
    reply = ask("/cache/clear", method, view)
    assert (reply.status, reply.headers, view.calls) == (405, {"Allow": "POST"}, [])


def test_clear_from_elsewhere() -> None:
    """Anyone on the network could empty the cache."""
    view = Proxy()
    reply = ask("/cache/clear", "POST", view, is_local=False)
    assert reply.status == 403
    assert json.loads(reply.body)["error"]["code"] == 403
    assert view.calls == []


@pytest.mark.parametrize("path", ["/cache/stats", "/cache/info", "/health"])
def test_reading_from_elsewhere(path: str) -> None:
    """A monitor on another machine would be locked out."""
    assert ask(path, "GET", Proxy(), is_local=False).status == 200


def test_clear_that_fails() -> None:
    """A full disk would look like an emptied cache."""
    reply = ask("/cache/clear", "POST", Proxy(OSError("no space")))
    assert reply.status == 500
    error = json.loads(reply.body)["error"]
    assert (error["code"], error["message"]) == (500, "no space")
