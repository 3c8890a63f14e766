"""The URLs to which upstream redirects, as clients of the proxy have to read them.

Pure. Upstream makes absolute URLs of the name by which it was asked, which is not the proxy's: a
client that follows one would go past the proxy, or nowhere. A path alone leads back to the proxy,
by whatever name and scheme the client has reached it.
"""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

FIELDS = (b"location", b"content-location")
"""The lower-case names of header fields that have such a URL (RFC 9110 §10.2.2, §8.7)."""

PORTS = {"http": 80, "https": 443}
"""The ports of URLs that name none."""


def through_proxy(value: str, upstream: str) -> str:
    """A URL of upstream as a path; every other one as it is. `upstream` is scheme://host:port."""
    scheme, _, _ = upstream.partition(":")
    try:
        url = urlsplit(f"{scheme}:{value}" if value[:2] == "//" else value)
        if not url.netloc or "@" in url.netloc or _origin(url) != _origin(urlsplit(upstream)):
            return value
    except ValueError:
        return value
    # Cut out of the value, not written anew: every byte of the path is upstream's own.
    rest = value[value.index("//") + 2 + len(url.netloc) :]
    if rest[:1] != "/":
        return f"/{rest}"
    # Two slashes, of either kind, would begin the name of another host.
    return f"/.{rest}" if rest[1:2] in ("/", "\\") else rest


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or PORTS.get(url.scheme)
