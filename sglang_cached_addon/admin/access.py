"""Who may call the proxy's own routes, and what others are told.

Pure. A private route is for whoever knows the admin token or, where there is none, for this
machine; never for a page of another site in somebody's browser.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from sglang_cached_addon.service.error_bodies import error_body


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """What one of the proxy's own routes answers."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, code: str, message: str, **headers: str) -> RouteAnswer:
    """An answer with an error in it, as OpenAI's APIs have it."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RouteAnswer(status, error_body(status, code, message), named)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as far as the rules want to know it: header fields are None where absent."""

    is_local: bool
    """On this machine, and nobody has sent the request on."""
    host: str = ""
    origin: str | None = None
    fetch_site: str | None = None
    authorization: str | None = None


def refusal(path: str, caller: Caller, admin_token: str) -> RouteAnswer | None:
    """What a caller is told who may not call a private route; None for who may. `admin_token` is
    empty where none is set."""
    if _is_cross_site(caller, needs_known_host=not admin_token):
        return error(403, "Forbidden", f"{path} does not answer to pages of other sites")
    if admin_token:
        scheme, _, token = (caller.authorization or "").partition(" ")
        # In bytes: text beyond ASCII cannot be compared. Any text has bytes this way.
        given, right = (t.encode("utf-8", "surrogatepass") for t in (token.strip(" "), admin_token))
        is_right = hmac.compare_digest(given, right)
        if scheme.lower() == "bearer" and is_right:
            return None
        message = f"{path} needs the admin token: Authorization: Bearer TOKEN"
        return error(401, "Unauthorized", message, WWW_Authenticate="Bearer")
    if caller.is_local:
        return None
    message = (
        f"{path} can only be called on the machine that the proxy runs on, "
        "unless it is started with --admin-token"
    )
    return error(403, "Forbidden", message)


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
