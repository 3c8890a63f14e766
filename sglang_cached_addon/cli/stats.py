"""`sglang-cached stats`: what is stored, and what became of calls since the proxy's start."""

from __future__ import annotations

from typing import Any

import click

from sglang_cached_addon.cli.frame import about_a_cache
from sglang_cached_addon.cli.output import Output, members
from sglang_cached_addon.cli.reach import Cache

STORED = ("num_keys", "total_responses", "cache_file")
"""What a folder tells by itself."""


@click.command()
@about_a_cache()
def stats(cache: Cache, output: Output) -> None:
    """Show what is stored, and what became of calls."""
    found = cache.ask("GET", "/cache/stats")
    if not cache.is_running:
        found = {name: found[name] for name in STORED}
    output.show(found, members(_flat(found)))


def _flat(found: dict[str, Any]) -> list[tuple[str, object]]:
    """Members, and the members of these with both names."""
    flat: list[tuple[str, object]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            flat += [(f"{name}.{inner}", each) for inner, each in value.items()]
        else:
            flat.append((name, value))
    return flat
