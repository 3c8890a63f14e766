"""`sglang-cached`: the group is a table of contents, with a command per file.

How a command is made is in `frame`.
"""

from __future__ import annotations

import click

from sglang_cached_addon import __version__
from sglang_cached_addon.cli.clear import clear
from sglang_cached_addon.cli.compact import compact
from sglang_cached_addon.cli.completion import completion
from sglang_cached_addon.cli.delete import delete
from sglang_cached_addon.cli.demo import demo
from sglang_cached_addon.cli.diff import diff
from sglang_cached_addon.cli.doctor import doctor
from sglang_cached_addon.cli.explain import explain
from sglang_cached_addon.cli.export import export
from sglang_cached_addon.cli.frame import Commands
from sglang_cached_addon.cli.import_ import import_
from sglang_cached_addon.cli.info import info
from sglang_cached_addon.cli.ls import ls
from sglang_cached_addon.cli.merge import merge
from sglang_cached_addon.cli.show import show
from sglang_cached_addon.cli.simulate import simulate
from sglang_cached_addon.cli.start import start
from sglang_cached_addon.cli.stats import stats
from sglang_cached_addon.cli.verify import verify
from sglang_cached_addon.cli.warm import warm


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sglang-cached")
def main() -> None:
    """A response cache in front of SGLang: the same request is generated once."""


LOOKING = (doctor, stats, info, ls, show, explain, diff, export, verify)
CHANGING = (delete, clear, import_, merge, warm, compact)

for command in (start, *LOOKING, *CHANGING, completion, demo, simulate):
    main.add_command(command)
