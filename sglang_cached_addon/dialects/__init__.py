"""The HTTP APIs that are cached, one file each, found by method and path.

Every dialect, ours and third parties' alike, is an entry point of the group
`sglang_cached.dialects`, so adding one touches no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points

from sglang_cached_addon.dialects.base import Dialect

GROUP = "sglang_cached.dialects"

Registry = Mapping[tuple[str, str], Dialect]
"""(method, path) to the dialect that answers for it."""


def registry(dialects: Iterable[Dialect]) -> Registry:
    """Raises ValueError when two dialects claim one route."""
    routes: dict[tuple[str, str], Dialect] = {}
    for dialect in dialects:
        for route in dialect.routes:
            if route in routes:
                raise ValueError(
                    f"{' '.join(route)} is claimed by two dialects, "
                    f"{routes[route].name} and {dialect.name}; uninstall one of them"
                )
            routes[route] = dialect
    return routes


def without(known: Registry, name: str) -> Registry:
    """All but the dialect of this name."""
    return {route: each for route, each in known.items() if each.name != name}


@cache
def installed() -> Registry:
    """The dialects of all installed packages. Raises ValueError as `registry` does. Looking through
    the packages takes a third of a start."""
    return registry(
        point.load() for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)
    )
