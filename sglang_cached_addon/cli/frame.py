"""What the commands have in common: their options, and how they end.

A command is a file in `cli/` with a function, and a name in `cli/__init__.py`:

    @click.command()
    @about_a_cache()  # --json, --cache-path, --url, --admin-token
    @click.argument("key")
    def show(cache: Cache, output: Output, key: str) -> None:
        '''Show one entry.'''
        entry = cache.ask("GET", f"/cache/entries/{key}")
        output.show(entry, lines_of(entry))

`cache` is asked in the words of the proxy's own routes, whether a proxy answers or a folder is read
(see `reach`); `about_a_cache(changes=True)` is for a command that changes what is stored. `output`
(see `output`) prints for people, or JSON for programs. What goes wrong is raised, as `CacheError`,
`StoreError` or click's own errors, and `Commands` tells it in a line: the exit code is 1, and 2 for
what was typed wrongly. What takes its time to import is imported in the function, so that `--help`
is there at once. Knows no command.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import click

from sglang_cached_addon.cli.output import Output
from sglang_cached_addon.cli.reach import CacheError, Where, reach

Function = Callable[..., Any]

INTERRUPTED = 130
"""The exit code after Ctrl+C, as shells have it."""

cache_path_option = click.option(
    "--cache-path",
    default="~/.sglang_cache",
    show_default=True,
    metavar="FOLDER",
    envvar="SGLANG_CACHED_CACHE_PATH",
    show_envvar=True,
    type=click.Path(),
    help="Where answers are kept.",
)
json_option = click.option(
    "--json", "is_json", is_flag=True, help="Print JSON: an object, or one a line."
)
url_option = click.option(
    "--url",
    default="",
    metavar="URL",
    envvar="SGLANG_CACHED_URL",
    show_envvar=True,
    help="The proxy to ask, in place of the one that has the folder.",
)
token_option = click.option(
    "--admin-token",
    default="",
    metavar="TOKEN",
    envvar="SGLANG_CACHED_ADMIN_TOKEN",
    show_envvar=True,
    help="What the proxy was started with, if it was.",
)


def prints_json(function: Function) -> Function:
    """Gives a command `--json`, and as its `output` what prints accordingly."""

    @json_option
    @functools.wraps(function)
    def run(is_json: bool, **given: Any) -> Any:
        return function(output=Output(is_json), **given)

    return run


def about_a_cache(*, changes: bool = False) -> Callable[[Function], Function]:
    """Gives a command the options that name a cache, and that one, open, as its `cache`; with
    `--json`, as `prints_json`. `changes`: what is stored is to be changed."""

    def decorate(function: Function) -> Function:
        @prints_json
        @cache_path_option
        @url_option
        @token_option
        @functools.wraps(function)
        def run(cache_path: str, url: str, admin_token: str, **given: Any) -> Any:
            with closing(reach(Where(cache_path, url, admin_token), changes=changes)) as cache:
                return function(cache=cache, **given)

        return run

    return decorate


class Commands(click.Group):
    """The commands, of which none ends with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()  # a reader that is gone is noticed here, and not at the end
        except CacheError as e:
            raise click.ClickException(str(e)) from None
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as e:
            named = f"{e.filename}: " if e.filename else ""
            raise click.ClickException(f"{named}{e.strerror or e}") from None
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            ctx.exit(INTERRUPTED)
