"""`sglang-cached start`: the proxy in front of one upstream. Its flags are those of `settings`."""

from __future__ import annotations

import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from sglang_cached_addon.option import Option
from sglang_cached_addon.proxy.start import FLAGS, Start


class Lines(click.types.StringParamType):
    """Text, of which an environment variable has several in a line each."""

    envvar_list_splitter = "\n"


def flag(option: Option) -> click.Option:
    """An entry of the settings as click has it."""
    kind: Any = Lines() if option.between == "\n" else None
    default: dict[str, Any] = {"default": option.default}
    if option.choices:
        kind = click.Choice([choice.value for choice in option.choices])
    elif option.bounds and option.type is int:
        kind = click.IntRange(min=int(option.bounds[0]))
    elif option.bounds:
        kind, default = click.FloatRange(*option.bounds), {"default": float(str(option.default))}
    elif option.metavar in ("FILE", "FOLDER"):
        kind = click.Path()
    elif option.type is bool:
        default = {"default": False}
    elif option.is_many or option.default is None:
        default = {}
    return click.Option(
        [*option.short.split(), option.long, option.attribute],
        type=kind,
        show_default=option.type is not bool and option.default != "",
        required=option.default is None,
        is_flag=option.type is bool,
        multiple=option.is_many,
        metavar=option.metavar,
        envvar=option.variable,
        show_envvar=True,
        help=option.long_help,
        **default,
    )


@click.command(params=[flag(option) for option in FLAGS])
def start(**given: Any) -> None:
    """Put the cache in front of a server, until Ctrl+C."""
    from sglang_cached_addon.proxy.runner import run  # mitmproxy takes its time to import

    context = click.get_current_context()
    if context.get_parameter_source("cache_path") is not ParameterSource.DEFAULT:
        # Named, even if it is the default.
        given["cache_path"] = os.path.expanduser(given["cache_path"])  # noqa: PTH111
    sys.exit(run(Start.parse(given)))
