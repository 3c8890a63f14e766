"""mitmweb's page where it asks for no token: before mitmproxy 11.1.2, as on Python 3.11.

Whoever reaches such a page can read requests, and run code as its owner. It is held to this
machine: another `web_host` is refused, whoever sets it, and the log says who can use the page.
"""

from __future__ import annotations

import logging
from ipaddress import ip_address

from mitmproxy import ctx, exceptions
from mitmproxy.version import MITMPROXY

logger = logging.getLogger("sglang_cached_addon")

DANGER = "read requests, and run code as you"
NEWER = "mitmproxy 11.1.2 or newer, which needs Python 3.12 or newer, asks for a token"


class WebPage:
    """An addon that keeps strangers from a page without a token."""

    name = "sglang_cached_web"

    def configure(self, updated: set[str]) -> None:
        if "web_host" in updated and _is_open() and not is_here(ctx.options.web_host):
            raise exceptions.OptionsError(
                f"with {MITMPROXY}, whoever reaches {ctx.options.web_host or 'any address'} could "
                f"{DANGER}; leave web_host at 127.0.0.1, which `ssh -L` makes reachable from "
                f"elsewhere ({NEWER})"
            )

    def running(self) -> None:
        if _is_open():
            logger.warning(
                "sglang-cached: the page of %s has no token: all users of this machine can %s. It "
                "listens on %s only (%s)",
                MITMPROXY,
                DANGER,
                ctx.options.web_host,
                NEWER,
            )


def is_here(host: str) -> bool:
    """Whether only this machine reaches who listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_open() -> bool:
    """Whether mitmweb runs, and asks for no token."""
    return "web_host" in ctx.options and ctx.master.addons.get("webauth") is None
