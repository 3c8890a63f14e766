"""`sglang-cached show`: one entry with what was asked and each of its samples."""

from __future__ import annotations

from collections.abc import Iterator

import click

from sglang_cached_addon.cli import completing
from sglang_cached_addon.cli.frame import about_a_cache
from sglang_cached_addon.cli.output import (
    Output,
    Value,
    members,
    shown_lines,
    shown_size,
    shown_time,
)
from sglang_cached_addon.cli.reach import Cache


@click.command()
@about_a_cache()
@click.argument("key", shell_complete=completing.keys)
def show(cache: Cache, output: Output, key: str) -> None:
    """Show what was asked and answered under a KEY, or what begins so."""
    entry = cache.ask("GET", f"/cache/entries/{key}")
    output.show(entry, _lines(entry))


def _lines(entry: Value) -> Iterator[str]:
    yield from members(
        (
            ("key", entry["key"]),
            ("model", entry["model"]),
            ("current", "yes" if entry["is_current"] else "no"),
            ("api", entry["api"]),
            ("samples", entry["samples"]),
            ("tokens", entry["tokens"]),
            ("size", shown_size(entry["bytes"])),
            ("stored", shown_time(entry["stored_at"])),
        )
    )
    for text in entry.get("texts") or [entry["request"]]:
        yield "\nasked:"
        yield from shown_lines(text)
    for number, answer in enumerate(entry["answers"]):
        facts = [
            answer["finish_reason"],
            f"{answer['tokens']} tokens" if answer["tokens"] or answer["finish_reason"] else None,
            f"{answer['seconds']:.2f} s",
            shown_time(answer["stored_at"]),
            f"in {', '.join(answer['runs'])}" if answer["runs"] else None,
        ]
        yield f"\nsample {number} ({', '.join(fact for fact in facts if fact)}):"
        yield from shown_lines(answer["text"])
