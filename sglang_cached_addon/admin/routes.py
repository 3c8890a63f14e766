"""The proxy's own routes, as a table: path, methods, handler, who may call.

Pure: a handler turns what can be told now into JSON. Knows nothing of mitmproxy; what a handler
wants done (clearing) it asks of `Reports`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from sglang_cached_addon.admin.access import Caller, RouteAnswer, error, refusal
from sglang_cached_addon.admin.reports import Reports


class _BadQuery(ValueError):
    """A query that says nothing that is understood."""


Handler = Callable[[Reports, str], Awaitable[dict[str, Any]]]
"""Takes the query of the request target, too."""


@dataclass(frozen=True, slots=True)
class Route:
    """One of the proxy's own routes."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    is_private: bool = False
    """It changes what is stored, or shows what is not for everybody."""
    hidden: tuple[tuple[str, ...], ...] = ()
    """Members that are null for who may not call private routes, by the way to them."""


async def _stats(reports: Reports, query: str) -> dict[str, Any]:
    return reports.stats()


async def _info(reports: Reports, query: str) -> dict[str, Any]:
    return reports.info()


async def _health(reports: Reports, query: str) -> dict[str, Any]:
    return reports.health()


async def _clear(reports: Reports, query: str) -> dict[str, Any]:
    # Nothing else is understood, not even written in another way: what is cleared is gone.
    name, _, which = query.partition("=") if query else ("model", "=", "all")
    if name != "model" or which not in CLEARABLE:
        raise _BadQuery(f"/cache/clear takes ?model={'|'.join(CLEARABLE)}, once, and nothing else")
    return await reports.clear(which)


CLEARABLE = ("current", "other", "all")
"""Whose samples can be cleared."""

ROUTES = {
    route.path: route
    for route in (
        Route("/cache/stats", ("GET", "HEAD"), _stats, hidden=(("cache_file",), ("shared", "url"))),
        Route("/cache/info", ("GET", "HEAD"), _info, is_private=True),
        Route("/cache/clear", ("POST",), _clear, is_private=True),
        Route("/health", ("GET", "HEAD"), _health, hidden=(("sglang_url",), ("upstream", "url"))),
    )
}


def find(path: str) -> Route | None:
    """The route for a request target, whatever its query."""
    return ROUTES.get(path.split("?", 1)[0])


async def answer(
    route: Route, method: str, query: str, caller: Caller, admin_token: str, reports: Reports
) -> RouteAnswer:
    """Serves a request to one of our own routes. `admin_token` is empty where none is set."""
    if method not in route.methods:
        allow = ", ".join(route.methods)
        return error(405, "MethodNotAllowed", f"{route.path} takes {allow}", Allow=allow)
    refused = refusal(route.path, caller, admin_token)
    if route.is_private and refused:
        return refused
    try:
        found = await route.handler(reports, query)
        for way in route.hidden if refused else ():
            _hide(found, way)
        return RouteAnswer(200, orjson.dumps(found))
    except _BadQuery as e:
        return error(400, "BadRequest", str(e))
    except OSError as e:
        return error(500, "StorageError", str(e))


def _hide(found: dict[str, Any], way: tuple[str, ...]) -> None:
    """Makes a member null, if it is there."""
    *parents, name = way
    for parent in parents:
        found = found.get(parent, {})
    if name in found:
        found[name] = None
