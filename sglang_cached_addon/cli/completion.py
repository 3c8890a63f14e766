"""`sglang-cached completion`: prints what makes a shell complete commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes what is typed.

    Bash: eval "$(sglang-cached completion bash)" in ~/.bashrc; zsh the same in ~/.zshrc, behind
    compinit; fish: sglang-cached completion fish > ~/.config/fish/completions/sglang-cached.fish
    """
    kind = get_completion_class(shell)
    assert kind
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "sglang-cached", "_SGLANG_CACHED_COMPLETE").source())
