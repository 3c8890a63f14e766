"""`sglang-cached merge`: makes one folder of several."""

from __future__ import annotations

from pathlib import Path

import click

from sglang_cached_addon.cli.frame import prints_json
from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import journal_of


@click.command()
@prints_json
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path())
@click.option(
    "--into",
    required=True,
    metavar="FOLDER",
    type=click.Path(),
    help="Where all of it is to be, made if missing; no proxy may have it.",
)
def merge(output: Output, folders: tuple[str, ...], into: str) -> None:
    """Take what is stored in some folders into one.

    Each pool has the samples of the first folder, then those of the next ones that are not there
    yet. A new folder goes on where the first one was, with its runs.
    """
    from sglang_cached_addon.archive.merging import merge as merge_folders

    sources = [journal_of(folder, "FOLDER").parent.resolve() for folder in folders]
    target = Path(into).expanduser().absolute()
    if target.resolve() in sources:
        raise click.BadParameter("is one of the folders to be merged", param_hint="--into")
    merged = merge_folders(sources, target)
    taken = merged.taken
    lines = [taken.sentence(target)]
    if merged.runs:
        lines.append(f"{merged.runs} runs of {sources[0]} go on; those of others begin anew")
    if merged.broken:
        lines.append(f"{merged.broken} lines could not be read: see `sglang-cached verify`")
    output.show(
        {
            "path": str(target),
            "entries": taken.entries,
            "samples": taken.samples,
            "present": taken.present,
            "runs": merged.runs,
            "broken_lines": merged.broken,
        },
        lines,
    )
