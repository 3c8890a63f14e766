"""Which entries a command is about: the options of `ls` and `export`, and how they are read."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from sglang_cached_addon.cli import completing

Function = Callable[..., Any]

_AGE = re.compile(r"\d+(\.\d+)?[smhdw]?")
"""An age as `/cache/entries` reads it, or Unix seconds."""


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A time that was typed, as `/cache/entries` reads it: an age, or Unix seconds of a date."""
    text = (value or "").strip()
    if not text or _AGE.fullmatch(text):
        return text or None
    try:
        return str(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError, OSError):
        message = f"{text}: must be an age as 90s, 30m, 12h, 7d or 2w, or a date as 2026-11-27"
        raise click.BadParameter(message) from None


_OPTIONS = (
    click.option(
        "--model",
        metavar="current|other|all|NAME",
        shell_complete=completing.models,
        help="Those of the current model, of every other, or of one by its name.",
    ),
    click.option("--api", metavar="NAME", shell_complete=completing.apis, help="Those of an API."),
    click.option("--text", help="Those with this in the prompt or an answer, in any case."),
    click.option(
        "--since",
        metavar="TIME",
        callback=moment,
        help="Those with a sample since then, as 2d or 2026-11-27.",
    ),
    click.option(
        "--until", metavar="TIME", callback=moment, help="Those with no sample since then."
    ),
    click.option(
        "--run", metavar="NAME", shell_complete=completing.runs, help="Those that a run has used."
    ),
)
NAMES = ("model", "api", "text", "since", "until", "run")


def filters(function: Function) -> Function:
    """Gives a command the options, and what was given as its `query`, for `/cache/entries`."""

    @functools.wraps(function)
    def run(**given: Any) -> Any:
        query = {name: given.pop(name) for name in NAMES}
        return function(query=query, **given)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run
