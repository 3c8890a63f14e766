"""`sglang-cached ls`: what is stored, the newest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from sglang_cached_addon.cli.filters import filters
from sglang_cached_addon.cli.frame import about_a_cache
from sglang_cached_addon.cli.output import Output, Value, shown_age, shown_size, shown_text
from sglang_cached_addon.cli.reach import Cache

HEADS = ("KEY", "AGE", "SAMPLES", "TOKENS", "SIZE", "REQUEST", "API", "MODEL")

REQUEST = 60
"""So many characters of what was asked are shown."""

KEY_DIGITS = 24
"""So many digits of a key are shown, which `show` and `delete` take; the first 16 are of the
model."""

PAGE = 500
"""Entries that are asked for at once."""


@click.command()
@about_a_cache()
@filters
@click.option(
    "--limit",
    default=50,
    show_default=True,
    type=click.IntRange(min=0),
    help="How many are shown; 0 for all.",
)
@click.option("--cursor", metavar="CURSOR", help="Go on where a former list has ended.")
def ls(cache: Cache, output: Output, query: dict[str, Any], limit: int, cursor: str | None) -> None:
    """List what is stored, the newest first."""
    pages = Pages(cache, query, cursor, limit)
    output.list(pages, HEADS, _row)
    if not pages.count:
        click.echo(f"no such entry; {pages.total} are stored", err=True)
    if pages.cursor:
        click.echo(
            f"{pages.count} entries are shown of {pages.total} that are stored; "
            f"the next ones: --cursor {pages.cursor}",
            err=True,
        )


class Pages:
    """Entries, page by page as they are wanted."""

    def __init__(self, cache: Cache, query: dict[str, Any], cursor: str | None, limit: int) -> None:
        """A `limit` of 0 is none."""
        self.count = 0
        """How many there were."""
        self.total = 0
        """How many are stored in all."""
        self.cursor = cursor
        """From where it goes on; None at the end."""
        self._cache, self._query, self._limit = cache, query, limit

    def __iter__(self) -> Iterator[Value]:
        while True:
            left = self._limit - self.count if self._limit else PAGE
            asked = {**self._query, "cursor": self.cursor, "limit": min(left, PAGE)}
            page = self._cache.ask("GET", "/cache/entries", asked)
            self.cursor, self.total = page["next"], page["total"]
            self.count += len(page["entries"])
            yield from page["entries"]
            if self.cursor is None or self.count == self._limit:
                return


def _row(entry: Value) -> tuple[str, ...]:
    return (
        entry["key"][:KEY_DIGITS],
        shown_age(entry["last_stored_at"]),
        str(entry["samples"]),
        str(entry["tokens"]),
        shown_size(entry["bytes"]),
        shown_text(entry["request"], REQUEST),
        shown_text(entry["api"], 40),
        shown_text(entry["model"] or "-", 40),
    )
