"""`sglang-cached info`: how the proxy is set up, and whose samples are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from sglang_cached_addon.cli.frame import about_a_cache
from sglang_cached_addon.cli.output import Output, members, shown_size, shown_text, table
from sglang_cached_addon.cli.reach import Cache

STORED = (
    "num_keys", "total_responses", "cache_file", "cache_dir", "version", "upstream", "model",
    "models", "dialects", "file_bytes", "loaded",
)  # fmt: skip
"""What a folder tells by itself."""


@click.command()
@about_a_cache()
def info(cache: Cache, output: Output) -> None:
    """Show how the proxy is set up, and which models have samples."""
    found = cache.ask("GET", "/cache/info")
    if not cache.is_running:
        found = {name: found[name] for name in STORED}
    output.show(found, _lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    model, loaded = found["model"], found["loaded"]
    yield from members(
        (
            ("version", found["version"]),
            ("upstream", found["upstream"]),
            ("model", model["name"]),
            ("fingerprint", model["fingerprint"]),
            ("cache", found["cache_file"]),
            ("entries", found["num_keys"]),
            ("samples", found["total_responses"]),
            ("on disk", shown_size(found["file_bytes"])),
            ("in memory", shown_size(found["memory_bytes"]) if "memory_bytes" in found else None),
            ("lane off", found.get("lane_off")),
            ("skipped lines", loaded["skipped_lines"] or None),
        )
    )
    if found["models"]:
        rows = [
            (shown_text(each["name"]), each["fingerprint"][:16], str(each["samples"]))
            for each in found["models"]
        ]
        yield ""
        yield from table(("model", "fingerprint", "samples"), rows)
    if found["dialects"]:
        counts = [(name, str(count)) for name, count in found["dialects"].items()]
        yield ""
        yield from table(("api", "samples"), counts)
    if settings := found.get("settings"):
        yield ""
        yield from members(settings.items())
