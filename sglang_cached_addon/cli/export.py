"""`sglang-cached export`: what is stored in a folder, as a file."""

from __future__ import annotations

import time
from typing import Any

import click

from sglang_cached_addon.cli.filters import filters
from sglang_cached_addon.cli.frame import cache_path_option, prints_json
from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import journal_of


@click.command()
@prints_json
@cache_path_option
@filters
@click.option(
    "--as",
    "kind",
    default="jsonl",
    show_default=True,
    type=click.Choice(["jsonl", "chat", "parquet"]),
    help="jsonl has all, and `import` takes it; chat is a data set of messages, one line a "
    "sample; parquet is a table, one row a sample.",
)
@click.argument("file", default="-", metavar="[FILE|-]", type=click.Path(dir_okay=False))
def export(output: Output, cache_path: str, query: dict[str, Any], kind: str, file: str) -> None:
    """Write what is stored to a FILE, also beside a running proxy."""
    from sglang_cached_addon.archive.exporting import FORMATS
    from sglang_cached_addon.archive.files import written
    from sglang_cached_addon.archive.parquet import NoPyarrow, load
    from sglang_cached_addon.archive.reading import Reading
    from sglang_cached_addon.catalog.query import NotFound, Query

    path = journal_of(cache_path)
    given = [(name, value) for name, value in query.items() if value]
    try:
        if kind == "parquet":
            load()
        reading = Reading(path.parent, Query.read(given, time.time()))
        with written(file) as out:
            done = FORMATS[kind](reading, out)
    except (NotFound, NoPyarrow, ValueError) as e:
        raise click.ClickException(str(e)) from None
    value = {
        "path": file,
        "entries": done.entries,
        "samples": done.samples,
        "left_out": done.left_out,
        "broken_lines": reading.broken,
    }
    lines = [f"{done.entries} entries, {done.samples} samples"]
    if done.left_out:
        lines.append(f"{done.left_out} entries have no text to be exported, and were left out")
    if reading.broken:
        lines.append(f"{reading.broken} lines could not be read: see `sglang-cached verify`")
    if file == "-":
        click.echo("; ".join(lines), err=True)
    else:
        output.show(value, lines)
