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
from sglang_cached_addon.admin.explained import explained
from sglang_cached_addon.admin.page import page
from sglang_cached_addon.admin.reports import Reports
from sglang_cached_addon.admin.request import Request
from sglang_cached_addon.catalog import Ambiguous
from sglang_cached_addon.catalog.query import BadQuery, NotFound, Query
from sglang_cached_addon.service.runs import Shown
from sglang_cached_addon.store.contract import Unavailable

Handler = Callable[[Reports, Request], Awaitable[dict[str, Any] | bytes | RouteAnswer]]
"""Tells, or does, what is asked; in JSON where it is large. Raises BadQuery for what is not
understood, NotFound where there is no such thing, and OSError."""


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


async def _stats(reports: Reports, request: Request) -> dict[str, Any]:
    return reports.stats()


async def _info(reports: Reports, request: Request) -> dict[str, Any]:
    return reports.info()


async def _health(reports: Reports, request: Request) -> dict[str, Any]:
    return reports.health()


async def _metrics(reports: Reports, request: Request) -> RouteAnswer:
    return reports.metrics()


async def _page(reports: Reports, request: Request) -> RouteAnswer:
    return page()


async def _to_page(reports: Reports, request: Request) -> RouteAnswer:
    return RouteAnswer(308, b"", {"Location": "cache/"})


async def _history(reports: Reports, request: Request) -> dict[str, Any]:
    return reports.past(request.after)


async def _clear(reports: Reports, request: Request) -> dict[str, Any]:
    return await reports.clear(request.cleared)


async def _explain(reports: Reports, request: Request) -> dict[str, Any]:
    try:
        return await explained(reports.explaining, request.body)
    except ValueError as e:
        raise BadQuery(str(e)) from None


async def _entries(reports: Reports, request: Request) -> bytes:
    query = Query.read(request.parameters.items(), reports.time)
    return await reports.catalog.entries(query)


async def _entry(reports: Reports, request: Request) -> dict[str, Any] | bytes:
    if request.method == "DELETE":
        return await reports.delete(request.named, now=request.is_now)
    return await reports.catalog.entry(request.named)


async def _flights(reports: Reports, request: Request) -> dict[str, Any]:
    return reports.flights()


async def _runs(reports: Reports, request: Request) -> dict[str, Any]:
    return {"runs": await reports.runs.shown()}


async def _run(reports: Reports, request: Request) -> dict[str, Any]:
    name, runs = request.run, reports.runs
    if request.method == "POST":
        request.check_fresh()
        return _found(name, await runs.begin(name))
    if request.method == "DELETE":
        return _found(name, await runs.delete(name))
    return _found(name, await runs.show(name))


async def _rewind(reports: Reports, request: Request) -> dict[str, Any]:
    return _found(request.run, await reports.runs.rewind(request.run))


def _found(name: str, run: Shown | None) -> Shown:
    if run is None:
        raise NotFound(f"there is no run {name}")
    return run


ROUTES = {
    route.path: route
    for route in (
        Route("/cache/stats", ("GET", "HEAD"), _stats, hidden=(("cache_file",), ("shared", "url"))),
        Route("/cache", ("GET", "HEAD"), _to_page),
        Route("/cache/", ("GET", "HEAD"), _page),
        Route("/cache/history", ("GET", "HEAD"), _history, is_private=True),
        Route("/cache/metrics", ("GET", "HEAD"), _metrics),
        Route("/cache/info", ("GET", "HEAD"), _info, is_private=True),
        Route("/cache/clear", ("POST",), _clear, is_private=True),
        Route("/cache/explain", ("POST",), _explain, is_private=True),
        Route("/cache/entries", ("GET", "HEAD"), _entries, is_private=True),
        Route("/cache/entries/{key}", ("GET", "HEAD", "DELETE"), _entry, is_private=True),
        Route("/cache/flights", ("GET", "HEAD"), _flights, is_private=True),
        Route("/cache/runs", ("GET", "HEAD"), _runs, is_private=True),
        Route("/cache/runs/{name}", ("GET", "HEAD", "POST", "DELETE"), _run, is_private=True),
        Route("/cache/runs/{name}/rewind", ("POST",), _rewind, is_private=True),
        Route("/health", ("GET", "HEAD"), _health, hidden=(("sglang_url",), ("upstream", "url"))),
    )
}


def find(path: str) -> Route | None:
    """The route for a request target, whatever its query."""
    path = path.split("?", 1)[0]
    for start, name in _NAMED.items():
        if path.startswith(start):
            _, is_more, rest = path[len(start) :].partition("/")
            path = f"{start}{name}{is_more}{rest}"
    return ROUTES.get(path)


_NAMED = {"/cache/runs/": "{name}", "/cache/entries/": "{key}"}
"""How paths begin that have a name in them, and how their routes call it."""


async def answer(
    route: Route, request: Request, caller: Caller, admin_token: str, reports: Reports
) -> RouteAnswer:
    """Serves a request to one of our own routes. `admin_token` is empty where none is set."""
    if request.method not in route.methods:
        allow = ", ".join(route.methods)
        return error(405, "MethodNotAllowed", f"{route.path} takes {allow}", Allow=allow)
    refused = refusal(route.path, caller, admin_token)
    if route.is_private and refused:
        return refused
    try:
        found = await route.handler(reports, request)
        if isinstance(found, RouteAnswer):
            return found
        if isinstance(found, bytes):
            return RouteAnswer(200, found)
        for way in route.hidden if refused else ():
            _hide(found, way)
        return RouteAnswer(200, orjson.dumps(found))
    except BadQuery as e:
        return error(400, "BadRequest", str(e))
    except Ambiguous as e:
        told = orjson.loads(error(409, "Conflict", str(e)).body)
        return RouteAnswer(409, orjson.dumps({**told, "keys": e.keys}))
    except NotFound as e:
        return error(404, "NotFound", str(e))
    except Unavailable as e:
        return error(503, "Unavailable", str(e))
    except OSError as e:
        return error(500, "StorageError", str(e))


def _hide(found: dict[str, Any], way: tuple[str, ...]) -> None:
    """Makes a member null, if it is there."""
    *parents, name = way
    for parent in parents:
        found = found.get(parent, {})
    if name in found:
        found[name] = None
