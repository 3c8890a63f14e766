"""The README's tables are those of the code; `python -m tests.test_readme` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from sglang_cached_addon.cli import main
from sglang_cached_addon.core.policy import REASONS
from sglang_cached_addon.dialects import installed
from sglang_cached_addon.settings import OPTIONS

README = Path(__file__).parent.parent / "README.md"


def start_help() -> str:
    """What `sglang-cached start --help` prints."""
    result = CliRunner().invoke(
        main, ["start", "--help"], prog_name="sglang-cached", terminal_width=96
    )
    return f"```\n{result.output.rstrip()}\n```"


def addon_options() -> str:
    rows = [f"| `{o.name}` | `{o.default}` | {o.option_help} |" for o in OPTIONS]
    return "\n".join(["| `--set` | default | |", "|---|---|---|", *rows])


def transport_fields() -> str:
    by_fields: dict[tuple[str, ...], list[str]] = {}
    for (_, path), dialect in installed().items():
        paths = by_fields.setdefault(tuple(sorted(dialect.transport)), [])
        if f"`{path}`" not in paths:
            paths.append(f"`{path}`")
    rows = [
        f"| {', '.join(sorted(paths))} | {', '.join(f'`{name}`' for name in fields)} |"
        for fields, paths in sorted(by_fields.items(), key=lambda row: row[1])
    ]
    return "\n".join(["| API | fields that are not in the key |", "|---|---|", *rows])


def reasons() -> str:
    rows = [f"| `{reason}` | {text} |" for reason, text in REASONS.items()]
    return "\n".join(["| reason | |", "|---|---|", *rows])


SECTIONS: dict[str, Callable[[], str]] = {
    "--help": start_help,
    "addon options": addon_options,
    "transport fields": transport_fields,
    "reasons": reasons,
}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- start {name} -->\n).*?(?=<!-- end -->)", re.S)


@pytest.mark.parametrize("name", SECTIONS)
def test_section(name: str) -> None:
    """A user who reads a table reads what the program does."""
    found = section(name).search(README.read_text())
    assert found
    assert found[0].strip() == SECTIONS[name]().strip()


if __name__ == "__main__":
    text = README.read_text()
    for title, render in SECTIONS.items():
        found = section(title).search(text)
        assert found, title
        text = f"{text[: found.start()]}{render()}\n{text[found.end() :]}"
    README.write_text(text)
