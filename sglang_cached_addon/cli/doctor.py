"""`sglang-cached doctor`: whether all is as it should be, and what to do where it is not.

Exit codes: 0, and 1 if something fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from sglang_cached_addon.cli.frame import Function, cache_path_option, prints_json, token_option
from sglang_cached_addon.cli.output import Output, shown_text

LONGEST = 1000
"""How many characters of a finding are shown."""


def named(name: str, help: str, **how: Any) -> Callable[[Function], Function]:
    """An option that can also be given in the environment, by the variable that `start` has."""
    variable = f"SGLANG_CACHED_{name[2:].replace('-', '_').upper()}"
    return click.option(name, envvar=variable, show_envvar=True, help=help, **how)


@click.command()
@prints_json
@cache_path_option
@token_option
@named(
    "--sglang-url",
    "The server, if not that of the folder, or of its proxy.",
    default="",
    metavar="URL",
)
@named("--store", "The Redis or Valkey server that is shared.", default="", metavar="URL")
@named("--api-key", "A key that the server is shown.", default="", metavar="KEY")
@named("--insecure", "Do not check the certificate of an https:// server.", is_flag=True)
def doctor(output: Output, cache_path: str, sglang_url: str, **given: Any) -> None:
    """Check server, folder, machine and programs, and say what to do."""
    from sglang_cached_addon.cli.checkup import Patient, examine
    from sglang_cached_addon.cli.diagnosis import State, worst
    from sglang_cached_addon.proxy.checks import StartError, normal_url

    try:
        folder = Path(cache_path).expanduser().absolute()
        url = normal_url(sglang_url) if sglang_url else ""
    except (RuntimeError, StartError) as e:
        raise click.UsageError(str(e)) from None
    findings = []
    for finding in examine(Patient(folder, url, **given)):
        findings.append(finding)
        if not output.is_json:
            output.print(_lines(finding.check, finding.state, finding.text, finding.remedy))
    if output.is_json:
        shown = [
            {"check": f.check, "state": f.state, "text": f.text, "remedy": f.remedy or None}
            for f in findings
        ]
        output.show({"state": worst(findings), "checks": shown}, ())
    sys.exit(worst(findings) is State.FAIL)


def _lines(check: str, state: str, text: str, remedy: str) -> Iterator[str]:
    yield f"{state.ljust(4)}  {check.ljust(9)}  {shown_text(text, LONGEST)}"
    if remedy:
        yield f"{'':17}{shown_text(remedy, LONGEST)}"
