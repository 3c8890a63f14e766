"""`sglang-cached clear`: removes what is stored of a model, of all others, or all of it."""

from __future__ import annotations

import click

from sglang_cached_addon.cli import completing
from sglang_cached_addon.cli.frame import about_a_cache
from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import Cache


@click.command()
@about_a_cache(changes=True)
@click.argument("model", metavar="current|other|all|MODEL", shell_complete=completing.models)
@click.option("--yes", is_flag=True, help="Do not ask before.")
def clear(cache: Cache, output: Output, model: str, yes: bool) -> None:
    """Remove what is stored of the current model, of every other, of one by its name, or all."""
    if not yes:
        what = {"current": "the current model", "other": "all but the current model", "all": "all"}
        click.confirm(
            f"Remove what is stored of {what.get(model, model)} in {cache.name}?",
            abort=True,
            err=True,
        )
    found = cache.ask("POST", "/cache/clear", {"model": model})
    entries, samples = found["cleared_keys"], found["cleared_responses"]
    output.show(found, [f"{entries} entries and {samples} samples were removed"])
