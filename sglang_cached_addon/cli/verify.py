"""`sglang-cached verify`: whether what is stored can be read, and what to do if not.

Only reads, and so works beside a running proxy; `--repair` needs the folder for itself.
Exit codes: 0 if all is well (or is now), 1 if not, 2 if there is no such cache.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from sglang_cached_addon.cli.frame import cache_path_option, prints_json
from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import journal_of


@click.command()
@prints_json
@cache_path_option
@click.option(
    "--repair",
    is_flag=True,
    help="Move what cannot be read to files of their own; the proxy must be stopped.",
)
@click.pass_context
def verify(ctx: click.Context, output: Output, cache_path: str, repair: bool) -> None:
    """Check each stored line."""
    from sglang_cached_addon.store.files import owner_of
    from sglang_cached_addon.store.journal.verify import examine

    path = journal_of(cache_path)
    faults: list[dict[str, int | str]] = []

    def tell(number: int, why: str) -> None:
        faults.append({"line": number, "why": why})
        if not output.is_json:
            output.print([f"{path}:{number}: {why}"])

    found = examine(path, tell)
    # Lines are written whole, but somebody may read in the middle of it.
    is_written = bool(found.torn) and not repair and owner_of(path.parent) is not None
    is_well = not found.broken and (not found.torn or is_written)
    if found.torn and not output.is_json:
        what = "being written" if is_written else "torn last line"
        output.print([f"{path}: {what} ({found.torn} bytes)"])
    if repair:
        _repair(path, is_well=is_well)
    counts = {
        "entries": found.entries,
        "samples": found.samples,
        "bytes": found.bytes,
        "broken_lines": found.broken,
        "lines_of_other_versions": found.others,
        "torn_bytes": found.torn,
    }
    is_repaired = repair and not is_well
    value = {"path": str(path), "is_well": is_well, "is_repaired": is_repaired, **counts}
    lines = [", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())]
    if is_repaired:
        lines.append(f"what could not be read is in {path}.broken or {path.name}.torn")
    output.show({**value, "faults": faults}, lines)
    ctx.exit(0 if is_well or repair else 1)


def _repair(path: Path, *, is_well: bool) -> None:
    """Moves aside what cannot be read; raises `StoreError`, also where there is nothing to do."""
    from sglang_cached_addon.store.journal import Journal

    with closing(Journal(path.parent)) as journal:
        if not is_well:
            journal.load()
            journal.compact().result()
