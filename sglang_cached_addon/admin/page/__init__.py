"""The page `/cache/`, put together to one document from the files of this folder.

There is nothing of the cache in it: what it shows, it asks of the proxy's other routes, under their
rules. A browser lets it run what stands in it, and ask its own proxy, and nothing else.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from sglang_cached_addon.admin.access import RouteAnswer

SCRIPTS = ("dom", "asking", "charts", "overview", "entries", "entry", "runs", "main")
"""The parts of its script, in their order."""


@cache
def page() -> RouteAnswer:
    """The document."""
    style = _text("page.css")
    script = "\n".join(_text(f"{name}.js") for name in SCRIPTS)
    body = _text("page.html").replace("{style}", style).replace("{script}", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; "
        f"style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return RouteAnswer(
        200,
        body.encode(),
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        },
    )


def _text(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
