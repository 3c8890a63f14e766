"""`sglang-cached verify`: whether what is stored can be read, and what to do if not.

Only reads, and so works beside a running proxy; `--repair` needs the folder for itself.
Exit codes: 0 if all is well (or is now), 1 if not, 2 if there is no such cache.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click

cache_path_option = click.option(
    "--cache-path",
    default="~/.sglang_cache",
    show_default=True,
    metavar="FOLDER",
    envvar="SGLANG_CACHED_CACHE_PATH",
    show_envvar=True,
    help="Where answers are kept.",
)


def journal_of(cache_path: str) -> Path:
    """The journal of a cache that exists; nothing is made."""
    try:
        path = Path(cache_path.strip()).expanduser().absolute() / "cache.jsonl"
    except RuntimeError as e:
        raise click.BadParameter(str(e), param_hint="--cache-path") from None
    if not cache_path.strip() or not path.is_file():
        message = f"no cache in {path.parent}: there is no {path.name}"
        raise click.BadParameter(message, param_hint="--cache-path")
    return path


@contextmanager
def told_errors(path: Path) -> Iterator[None]:
    """Tells what goes wrong with a journal in a line, as click does."""
    from sglang_cached_addon.store.files import StoreError

    try:
        yield
    except StoreError as e:
        raise click.ClickException(str(e)) from None
    except OSError as e:
        raise click.ClickException(f"cannot read {path}: {e.strerror}") from None


@click.command()
@cache_path_option
@click.option(
    "--repair",
    is_flag=True,
    help="Move what cannot be read to files of their own; the proxy must be stopped.",
)
def verify(cache_path: str, repair: bool) -> None:
    """Check each stored line."""
    from sglang_cached_addon.store.files import is_taken
    from sglang_cached_addon.store.journal import Journal
    from sglang_cached_addon.store.journal.verify import examine

    path = journal_of(cache_path)

    def tell(number: int, why: str) -> None:
        click.echo(f"{path}:{number}: {why}")

    with told_errors(path):
        found = examine(path, tell)
        is_well = not found.broken
        if found.torn:
            # Lines are written whole, but somebody may read in the middle of it.
            is_written = not repair and is_taken(path.parent)
            is_well = is_well and is_written
            what = "being written" if is_written else "torn last line"
            click.echo(f"{path}: {what} ({found.torn} bytes)")
        click.echo(
            f"{found.entries} entries, {found.samples} samples, {found.bytes} bytes, "
            f"{found.broken} broken lines, {found.others} lines of other versions, "
            f"{found.torn} torn bytes"
        )
        if repair:
            with closing(Journal(path.parent)) as journal:
                if not is_well:
                    journal.load()
                    journal.compact().result()
                    click.echo(f"what could not be read is in {path}.broken or {path.name}.torn")
            is_well = True
    sys.exit(0 if is_well else 1)
