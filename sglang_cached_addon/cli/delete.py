"""`sglang-cached delete`: removes entries for good."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sglang_cached_addon.cli import completing
from sglang_cached_addon.cli.frame import about_a_cache
from sglang_cached_addon.cli.output import Output, Value
from sglang_cached_addon.cli.reach import Cache


@click.command()
@about_a_cache(changes=True)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=completing.keys)
@click.option("--now", is_flag=True, help="Have the text out of the file at once.")
def delete(cache: Cache, output: Output, keys: tuple[str, ...], now: bool) -> None:
    """Remove what is stored under each KEY, or what begins so.

    The text is out of the file when that is compacted, which --now does.
    """
    # None is removed unless all are there.
    found = [cache.ask("GET", f"/cache/entries/{key}")["key"] for key in keys]
    output.list(_deleted(cache, list(dict.fromkeys(found)), now), ("KEY", "SAMPLES"), _row)
    if not (now or output.is_json):
        click.echo("The text is in the file until that is compacted; --now does it.", err=True)


def _deleted(cache: Cache, keys: list[str], now: bool) -> Iterator[Value]:
    for key in keys:
        is_last = key == keys[-1]
        query = {"now": "true" if now and is_last else None}
        yield cache.ask("DELETE", f"/cache/entries/{key}", query)


def _row(deleted: Value) -> tuple[str, str]:
    return deleted["deleted"], str(deleted["samples"])
