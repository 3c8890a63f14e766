"""`sglang-cached explain`: whether a call would be a hit, and what is nearest to it if not.

The call is not made, and nothing changes by it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

import click
import orjson

from sglang_cached_addon.cli.frame import Function, about_a_cache
from sglang_cached_addon.cli.output import Output, members, shown_text
from sglang_cached_addon.cli.reach import Cache
from sglang_cached_addon.cli.requests import read

ABSENT = "nothing"
"""Stands for a value that is not there."""


def path_option(what: str) -> Callable[[Function], Function]:
    """The option that names the path of bodies."""
    return click.option(
        "--path",
        default="",
        metavar="PATH",
        help=f"Where {what} without a path goes; else a guess.",
    )


@click.command()
@about_a_cache()
@path_option("a body")
@click.option("--header", "-H", multiple=True, metavar="'NAME: VALUE'", help="Sent with the call.")
@click.argument("file", type=click.File("rb"))
def explain(
    cache: Cache, output: Output, path: str, header: tuple[str, ...], file: IO[bytes]
) -> None:
    """Tell what would become of the call in FILE (- reads it from standard input), and why."""
    try:
        request = read(file.read(), path)
        asked = {
            "path": request.path,
            "body": request.body.decode(),
            "headers": dict(map(_field, header)),
        }
    except ValueError as e:
        raise click.BadParameter(f"{file.name}: {e}", param_hint="FILE") from None
    found = cache.ask("POST", "/cache/explain", body=asked)
    while found["looked_through"] < 1:  # an index is made, once
        _tell(f"looking through what is stored: {found['looked_through']:.0%}")
        found = cache.ask("POST", "/cache/explain", body=asked)
    _tell("")
    if not cache.is_running:
        found["reason"] = None if found["reason"] == "offline" else found["reason"]
    output.show(found, _lines(found))


def _field(text: str) -> tuple[str, str]:
    name, is_there, value = text.partition(":")
    if not is_there:
        raise ValueError(f"{text!r} is no header: write 'NAME: VALUE'")
    return name.strip(), value.strip()


def _tell(text: str) -> None:
    """Tells people in a line that does not stay."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _lines(found: dict[str, Any]) -> Iterator[str]:
    nearest = found["nearest"]
    yield from members(
        (
            ("outcome", found["outcome"]),
            ("reason", found["reason"]),
            ("api", found["api"]),
            ("run", found["run"]),
            ("ignored", ", ".join(found["ignored"]) or None),
            ("samples", f"{found['has']} of {found['wants']}" if found["keys"] else None),
            *(("key", key) for key in found["keys"][:10]),
        )
    )
    if not nearest:
        yield shown_text(found["text"])
    if found["is_admitted"] is False:
        yield "The server has not accepted such a caller lately: it is asked first."
    for number, near in enumerate(nearest):
        whose = "" if near["is_same_model"] else "  (of another model or credential)"
        yield ""
        yield f"{'nearest' if not number else 'then'}: {near['key']}{whose}"
        for one in near["differences"]:
            yield f"  {shown_text(one['at'])}"
            yield f"    asked   {_value(one, 'asked')}"
            yield f"    stored  {_value(one, 'stored')}"
        if not near["differences"]:
            yield "  the same call"


def _value(one: dict[str, Any], name: str) -> str:
    return shown_text(orjson.dumps(one[name]).decode()) if name in one else ABSENT
