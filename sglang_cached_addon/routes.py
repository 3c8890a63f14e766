"""The proxy's own routes, as a table: path, method, who may call, handler.

Pure: a handler turns a `View` of the running proxy into an answer. Knows nothing of
mitmproxy; what a handler wants done (clearing) it asks of the view.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from sglang_cached_addon.exchange import error_body


class View(Protocol):
    """What the routes can see and do."""

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and what is stored."""

    def info(self) -> dict[str, Any]:
        """The counts, and how the proxy is set up."""

    async def health(self) -> dict[str, Any]:
        """That the proxy lives, and the upstream's state."""

    async def clear(self) -> dict[str, Any]:
        """Empties the store; returns when the disk has it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of ours."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[View], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Route:
    """One of the proxy's own routes."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    local_only: bool = False
    """Only for clients on the loopback interface: it changes what is stored."""


async def _stats(view: View) -> dict[str, Any]:
    return view.stats()


async def _info(view: View) -> dict[str, Any]:
    return view.info()


async def _health(view: View) -> dict[str, Any]:
    return await view.health()


async def _clear(view: View) -> dict[str, Any]:
    return await view.clear()


ROUTES = {
    route.path: route
    for route in (
        Route("/cache/stats", ("GET", "HEAD"), _stats),
        Route("/cache/info", ("GET", "HEAD"), _info),
        Route("/cache/clear", ("POST",), _clear, local_only=True),
        Route("/health", ("GET", "HEAD"), _health),
    )
}


def find(path: str) -> Route | None:
    """The route for a request target, whatever its query."""
    return ROUTES.get(path.split("?", 1)[0])


async def answer(route: Route, method: str, is_local: bool, view: View) -> Reply:
    """Serves a request to one of our own routes."""
    if method not in route.methods:
        allow = ", ".join(route.methods)
        body = error_body(405, "MethodNotAllowed", f"{route.path} takes {allow}")
        return Reply(405, body, {"Allow": allow})
    if route.local_only and not is_local:
        message = f"{route.path} can only be called on the machine that the proxy runs on"
        return Reply(403, error_body(403, "Forbidden", message))
    try:
        return Reply(200, orjson.dumps(await route.handler(view)))
    except OSError as e:
        return Reply(500, error_body(500, "StorageError", str(e)))
