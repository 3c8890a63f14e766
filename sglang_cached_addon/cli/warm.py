"""`sglang-cached warm`: sends calls through the running proxy, so that they are stored.

Exit codes: 0, 1 if a call has failed, was denied or was not sent, 2 for a file with something else
in it, 130 after Ctrl+C.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import click

from sglang_cached_addon.cli.explain import path_option
from sglang_cached_addon.cli.frame import (
    INTERRUPTED,
    cache_path_option,
    prints_json,
    url_option,
)
from sglang_cached_addon.cli.output import Output, members
from sglang_cached_addon.cli.reach import Where, proxy_of
from sglang_cached_addon.cli.requests import Request, read

if TYPE_CHECKING:
    from sglang_cached_addon.cli.tally import Tally

MOST_TOLD = 10
"""So many lines that are wrong, or calls that failed, are told."""


@click.command()
@prints_json
@cache_path_option
@url_option
@path_option("a line")
@click.option("--header", "-H", multiple=True, metavar="'NAME: VALUE'", help="Sent with each call.")
@click.option(
    "--concurrency", default=32, show_default=True, type=click.IntRange(1, 4096), metavar="N",
    help="Calls at a time.",
)  # fmt: skip
@click.option(
    "--attempts", default=4, show_default=True, type=click.IntRange(1), metavar="N",
    help="How often a call is sent that fails for want of the server.",
)  # fmt: skip
@click.option(
    "--timeout", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True),
    metavar="SECONDS", help="How long an answer may take.",
)  # fmt: skip
@click.argument("file", type=click.File("rb"))
@click.pass_context
def warm(
    ctx: click.Context,
    output: Output,
    cache_path: str,
    url: str,
    path: str,
    header: tuple[str, ...],
    concurrency: int,
    attempts: int,
    timeout: float,
    file: IO[bytes],
) -> None:
    """Send the calls in FILE, one a line, through the proxy, so that they are stored."""
    import asyncio  # takes its time, as what follows

    from sglang_cached_addon.cli import warming

    headers = [(b"Content-Type", b"application/json"), *map(_field, header)]
    manner = warming.Manner(
        proxy_of(Where(cache_path, url)), headers, concurrency, attempts, timeout
    )
    with _rewindable(file) as calls:
        total = _checked(calls, file.name, path)
        calls.seek(0)
        with _progress(total) as done:
            tally = asyncio.run(warming.warm(manner, _requests(calls, path), done))
    output.show({"lines": total, **tally.as_json()}, _lines(tally, total))
    if tally.stopped == warming.INTERRUPTED:
        ctx.exit(INTERRUPTED)
    ctx.exit(0 if tally.is_whole else 1)


def _field(text: str) -> tuple[bytes, bytes]:
    name, is_there, value = text.partition(":")
    if not is_there:
        raise click.BadParameter(f"{text!r}: write 'NAME: VALUE'", param_hint="--header")
    return name.strip().encode(), value.strip().encode()


@contextmanager
def _rewindable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The same, which can be read twice."""
    if file.seekable():
        yield file
        return
    with TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


def _checked(file: IO[bytes], name: str, path: str) -> int:
    """How many calls there are; raises click's error if any line is something else: then none is
    sent."""
    count, wrong = 0, list[str]()
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        count += 1
        try:
            read(line, path)
        except ValueError as e:
            wrong.append(f"{name}:{number}: {e}")
            if len(wrong) == MOST_TOLD:
                break
    if wrong:
        raise click.BadParameter("\n".join(["nothing is sent", *wrong]), param_hint="FILE")
    return count


def _requests(file: IO[bytes], path: str) -> Iterator[tuple[int, Request]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, read(line, path)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Shows people how far it is, at which rate, and how long it will take."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    started, count = time.monotonic(), 0
    with click.progressbar(length=total, show_pos=True, file=sys.stderr) as bar:

        def done() -> None:
            nonlocal count
            count += 1
            bar.label = f"{count / max(0.001, time.monotonic() - started):.1f}/s"
            bar.update(1)

        yield done


def _lines(tally: Tally, total: int) -> Iterator[str]:
    yield from members(
        (
            ("calls", f"{tally.sent} of {total}" if tally.stopped else total),
            ("hits", tally.hits),
            ("partial hits", tally.partial_hits),
            ("collapsed", tally.collapsed),
            ("misses", tally.misses),
            ("bypasses", tally.bypasses),
            ("denied", tally.denied.total()),
            ("failures", tally.failures.total()),
            ("samples", f"{tally.samples}, {tally.generated} of them generated"),
            ("tokens", tally.tokens),
            ("time", f"{tally.seconds:.1f} s, {tally.sent / max(0.001, tally.seconds):.1f}/s"),
        )
    )
    said = (
        ("not stored", tally.not_stored), ("denied", tally.denied), ("failed", tally.failures),
    )  # fmt: skip
    for what, counts in said:
        for reason, count in counts.most_common(MOST_TOLD):
            yield from members([(what, f"{count} x {reason}")])
    for one in tally.failed[:MOST_TOLD]:
        name = f" ({one['custom_id']})" if one["custom_id"] else ""
        yield from members([(f"line {one['line']}{name}", one["why"])])
    if tally.stopped:
        yield from members([("stopped", tally.stopped)])
        yield "To go on, type it again: what is stored is answered at once."
