"""Taking an archive into a folder: all of it, or where a line is wrong, nothing.

So the lines are read twice: those that cannot be are kept aside in between, in a file of the folder
that has no name. Needs the folder for itself, and memory for one line.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from sglang_cached_addon.archive import record
from sglang_cached_addon.archive.reading import carried
from sglang_cached_addon.archive.record import Record
from sglang_cached_addon.archive.writing import Taken, Writing
from sglang_cached_addon.upstream.facts import Facts


class BadLine(ValueError):
    """A line is not one of an archive."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")


def take(archive: IO[bytes], folder: Path) -> Taken:
    """Takes the pools of an archive. Raises `BadLine`, `StoreError` and OSError."""
    with ExitStack() as stack:
        writing = stack.enter_context(Writing(folder))
        lines = archive
        if not archive.seekable():
            lines = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            shutil.copyfileobj(archive, lines, 1 << 20)
            lines.seek(0)
        start = lines.tell()
        names = _names(lines)
        lines.seek(start)
        for _, found in _read(lines):
            if isinstance(found, Record):
                writing.take(found.pool)
            else:
                # Whom a server lets ask, its proxy finds out; no file says it.
                writing.learn(carried(Facts.read(found)))
        writing.name(names)
        return writing.finish()


def _names(lines: IO[bytes]) -> dict[str, str]:
    """The names of models, by fingerprint. Raises `BadLine` where a line is wrong."""
    names: dict[str, str] = {}
    for number, found in _read(lines):
        if isinstance(found, Record):
            if found.fingerprint:
                names[found.fingerprint] = found.model
            continue
        try:
            Facts.read(found)
        except ValueError as e:
            raise BadLine(number, f"'state': {e}") from None
    return names


def _read(lines: IO[bytes]) -> Iterator[tuple[int, Record | dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        try:
            yield number, record.read(line)
        except ValueError as e:
            raise BadLine(number, str(e)) from None
