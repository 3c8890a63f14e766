"""The proxy's own routes, as a table: path, method, who may call, handler.

Pure: a handler turns a `View` of the running proxy into an answer. Knows nothing of
mitmproxy; what a handler wants done (clearing) it asks of the view.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

import orjson

from sglang_cached_addon.service.exchange import error_body


class View(Protocol):
    """What the routes can see and do."""

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and what is stored."""

    def info(self) -> dict[str, Any]:
        """The counts, and how the proxy is set up."""

    def health(self) -> dict[str, Any]:
        """That the proxy lives, and the upstream's state, as far as it is known."""

    async def clear(self, which: str) -> dict[str, Any]:
        """Removes what belongs to the `current` model, to every `other`, or `all`; returns when the
        disk has it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of ours."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the rules want to know it: header fields are None where absent."""

    is_local: bool
    """On this machine, and nobody has sent the request on."""
    host: str = ""
    origin: str | None = None
    fetch_site: str | None = None
    authorization: str | None = None


class _BadQuery(ValueError):
    """A query that says nothing that is understood."""


Handler = Callable[[View, str], Awaitable[dict[str, Any]]]
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


async def _stats(view: View, query: str) -> dict[str, Any]:
    return view.stats()


async def _info(view: View, query: str) -> dict[str, Any]:
    return view.info()


async def _health(view: View, query: str) -> dict[str, Any]:
    return view.health()


async def _clear(view: View, query: str) -> dict[str, Any]:
    # Nothing else is understood, not even written in another way: what is cleared is gone.
    name, _, which = query.partition("=") if query else ("model", "=", "all")
    if name != "model" or which not in CLEARABLE:
        raise _BadQuery(f"/cache/clear takes ?model={'|'.join(CLEARABLE)}, once, and nothing else")
    return await view.clear(which)


HEALTH = "/health"

CLEARABLE = ("current", "other", "all")
"""Whose samples can be cleared."""

ROUTES = {
    route.path: route
    for route in (
        Route("/cache/stats", ("GET", "HEAD"), _stats, hidden=(("cache_file",), ("shared", "url"))),
        Route("/cache/info", ("GET", "HEAD"), _info, is_private=True),
        Route("/cache/clear", ("POST",), _clear, is_private=True),
        Route(HEALTH, ("GET", "HEAD"), _health, hidden=(("sglang_url",), ("upstream", "url"))),
    )
}


def find(path: str) -> Route | None:
    """The route for a request target, whatever its query."""
    return ROUTES.get(path.split("?", 1)[0])


async def answer(
    route: Route, method: str, query: str, caller: Caller, admin_token: str, view: View
) -> Reply:
    """Serves a request to one of our own routes. `admin_token` is empty where none is set."""
    if method not in route.methods:
        allow = ", ".join(route.methods)
        body = error_body(405, "MethodNotAllowed", f"{route.path} takes {allow}")
        return Reply(405, body, {"Allow": allow})
    refused = refusal(route, caller, admin_token)
    if route.is_private and refused:
        return refused
    try:
        found = await route.handler(view, query)
        for way in route.hidden if refused else ():
            _hide(found, way)
        return Reply(200, orjson.dumps(found))
    except _BadQuery as e:
        return Reply(400, error_body(400, "BadRequest", str(e)))
    except OSError as e:
        return Reply(500, error_body(500, "StorageError", str(e)))


def is_relayed(names: Iterable[bytes]) -> bool:
    """Whether header fields, by their names in lower case, say that a proxy has sent a request on:
    who is behind it is not who is connected."""
    return any(name in _RELAYED or name.startswith(b"x-forwarded-") for name in names)


_RELAYED = frozenset(
    (
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"forwarded",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-original-forwarded-for",
        b"x-real-ip",
    )
)


def _hide(found: dict[str, Any], way: tuple[str, ...]) -> None:
    """Makes a member null, if it is there."""
    *parents, name = way
    for parent in parents:
        found = found.get(parent, {})
    if name in found:
        found[name] = None


def refusal(route: Route, caller: Caller, admin_token: str) -> Reply | None:
    """Why a private route is not for this caller: a page of another site in somebody's browser,
    one who does not know the token, or, where there is none, one who is not on this machine."""
    if _is_cross_site(caller, needs_known_host=not admin_token):
        message = f"{route.path} does not answer to pages of other sites"
        return Reply(403, error_body(403, "Forbidden", message))
    if admin_token:
        scheme, _, token = (caller.authorization or "").partition(" ")
        # In bytes: text beyond ASCII cannot be compared. Any text has bytes this way.
        given, right = (t.encode("utf-8", "surrogatepass") for t in (token.strip(" "), admin_token))
        is_right = hmac.compare_digest(given, right)
        if scheme.lower() == "bearer" and is_right:
            return None
        message = f"{route.path} needs the admin token: Authorization: Bearer TOKEN"
        body = error_body(401, "Unauthorized", message)
        return Reply(401, body, {"WWW-Authenticate": "Bearer"})
    if caller.is_local:
        return None
    message = (
        f"{route.path} can only be called on the machine that the proxy runs on, "
        "unless it is started with --admin-token"
    )
    return Reply(403, error_body(403, "Forbidden", message))


def _is_cross_site(caller: Caller, *, needs_known_host: bool) -> bool:
    """Whether a browser sent this on behalf of a page of another site. Where nothing else is
    asked of the caller, its `Host` has to be this machine by name or an address: another
    name may have been made to point here (DNS rebinding)."""
    if caller.fetch_site not in (None, "same-origin", "none"):
        return True
    if caller.origin is not None:
        scheme, _, authority = caller.origin.partition("://")
        if not (scheme and authority) or authority.lower() != caller.host.lower():
            return True
    return needs_known_host and not _is_known_host(caller.host)


_HOST = re.compile(r"(?:\[(?P<v6>.+)\]|(?P<name>[^:]+))(?::[0-9]*)?", re.DOTALL)


def _is_known_host(host: str) -> bool:
    """`localhost` or below it, or the literal of an address, with any port or none."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    v6, name = found["v6"], found["name"]
    if name and (name.lower() == "localhost" or name.lower().endswith(".localhost")):
        return True
    try:
        IPv6Address(v6) if v6 else IPv4Address(name)
    except ValueError:
        return False
    return True
