"""`sglang-cached import`: takes what `export` has written into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import click

from sglang_cached_addon.cli.frame import cache_path_option, prints_json
from sglang_cached_addon.cli.output import Output


@click.command("import")
@prints_json
@cache_path_option
@click.argument("file", type=click.File("rb"), default="-", metavar="[FILE|-]")
def import_(output: Output, cache_path: str, file: IO[bytes]) -> None:
    """Take what `export` has written into a folder that no proxy has.

    Each line is checked before any is taken. What is there already is left as it is.
    """
    from sglang_cached_addon.archive.importing import BadLine, take

    if not cache_path.strip():
        raise click.BadParameter("must name a folder", param_hint="--cache-path")
    folder = Path(cache_path.strip()).expanduser().absolute()
    try:
        taken = take(file, folder)
    except BadLine as e:
        raise click.ClickException(f"{file.name}, {e}; nothing was taken") from None
    output.show(
        {
            "path": str(folder),
            "entries": taken.entries,
            "samples": taken.samples,
            "present": taken.present,
        },
        [taken.sentence(folder)],
    )
