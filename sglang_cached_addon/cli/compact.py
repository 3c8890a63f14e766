"""`sglang-cached compact`: rewrites the journal without what later lines have replaced.

Needs the folder for itself; a running proxy does this by itself when it is worth it.
Exit codes: 0, 1 if it could not be done, 2 if there is no such cache.
"""

from __future__ import annotations

from contextlib import closing

import click

from sglang_cached_addon.cli.frame import cache_path_option, prints_json
from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import journal_of


@click.command()
@prints_json
@cache_path_option
def compact(output: Output, cache_path: str) -> None:
    """Make the file smaller, where stored answers were replaced."""
    from sglang_cached_addon.store.journal import Journal

    path = journal_of(cache_path)
    before = path.stat().st_size
    with closing(Journal(path.parent)) as journal:
        journal.load()
        journal.compact().result()
    after = path.stat().st_size
    output.show(
        {"path": str(path), "bytes_before": before, "bytes_after": after},
        [f"{path}: {before} bytes before, {after} bytes after"],
    )
