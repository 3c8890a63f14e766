"""Where an answer of upstream leads, as its clients have to read it.

Pure. Upstream makes absolute URLs of the name by which it was asked, which is not the proxy's: who
follows one would go past the proxy, or nowhere. A path leads back to wherever the client came from,
by whatever name and scheme.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

FIELDS = ("Location", "Content-Location")
"""Header fields that lead somewhere (RFC 9110 §10.2.2, §8.7)."""

_PORTS = {"http": 80, "https": 443}


def through_proxy(value: str, upstream: str) -> str:
    """A URL of upstream as a path; every other one as it is. `upstream` is scheme://host:port."""
    scheme, _, _ = upstream.partition(":")
    try:
        url, ours = (
            urlsplit(f"{scheme}:{value}" if value[:2] == "//" else value),
            urlsplit(upstream),
        )
        if not url.netloc or "@" in url.netloc or _origin(url) != _origin(ours):
            return value
    except ValueError:
        return value
    # Cut, not put together again: what it says is upstream's business.
    rest = value[value.index("//") + 2 + len(url.netloc) :]
    if rest[:1] != "/":
        return f"/{rest}"
    # Two of them, of either kind, would be the beginning of another host.
    return f"/.{rest}" if rest[1:2] in ("/", "\\") else rest


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)
