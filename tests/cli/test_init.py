"""The command line as a table of contents."""

from __future__ import annotations

import click
from click.testing import CliRunner

from sglang_cached_addon import __version__
from sglang_cached_addon.cli import main
from tests.tables import each


def test_version() -> None:
    """--version says what is installed."""
    assert (
        CliRunner().invoke(main, ["--version"]).output == f"sglang-cached, version {__version__}\n"
    )


@each("name", sorted(main.commands))
def test_every_command_has_help(name: str) -> None:
    """Each command and each of its options is explained."""
    command = main.commands[name]
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_unknown_command() -> None:
    """A wrong word is a usage error."""
    result = CliRunner().invoke(main, ["nonsense"])
    assert result.exit_code == 2
    assert "No such command" in result.output
