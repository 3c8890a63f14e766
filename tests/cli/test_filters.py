"""The times that people type; what the options pick out is in `test_ls`."""

from __future__ import annotations

from datetime import datetime

import click
import pytest

from sglang_cached_addon.cli.filters import moment
from tests.tables import each

CONTEXT = click.Context(click.Command("ls"))
PARAMETER = click.Option(["--since"])


@each(
    ("text", "read"),
    [
        (None, None),
        ("", None),
        ("90", "90"),
        ("90s", "90s"),
        (" 1.5h ", "1.5h"),
        ("2w", "2w"),
        ("1764211144.5", "1764211144.5"),
        ("2026-11-27", str(datetime(2026, 11, 27).timestamp())),
        ("2026-11-27T02:03:04+00:00", "1795744984.0"),
        ("2026-11-27 02:03:04Z", "1795744984.0"),
    ],
)
def test_moment(text: str | None, read: str | None) -> None:
    """An age and Unix seconds are as they were typed, and a date is Unix seconds."""
    assert moment(CONTEXT, PARAMETER, text) == read


@each("text", ["yesterday", "5 x", "-1d", "2026-13-01", "1e9"])
def test_no_moment(text: str) -> None:
    """What is no time is told, with what is one."""
    with pytest.raises(click.BadParameter, match="an age as 90s"):
        moment(CONTEXT, PARAMETER, text)
