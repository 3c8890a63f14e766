"""Opening a journal: what is of no use is set aside, and the rest is read into the index.

Runs before the writer does. A torn last line goes to `cache.jsonl.torn`, and a file of another
program to `cache.jsonl.original`; broken lines stay where they are, and are counted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sglang_cached_addon.store.files import private
from sglang_cached_addon.store.journal.extents import FILE, Place
from sglang_cached_addon.store.journal.file import JournalFile
from sglang_cached_addon.store.journal.kept import KeptIndex
from sglang_cached_addon.store.journal.lines import (
    BROKEN,
    OLD_VERSIONS,
    OtherVersion,
    is_foreign,
    scan,
)
from sglang_cached_addon.store.journal.queue import Queue
from sglang_cached_addon.store.journal.reader import FileReader, FileReaders

PROGRESS_LINES = 20_000
"""The progress is told after so many lines."""

MANY = 20
"""So many broken lines are logged one by one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found at open."""

    keys: int = 0
    samples: int = 0
    skipped: int = 0
    """The number of lines that could not be used."""
    torn: int = 0
    """The bytes of a torn last line, which was moved aside."""
    old: int = 0
    """The number of lines, among those skipped, that are of older format versions."""


def load(
    file: JournalFile, queue: Queue, kept: KeptIndex, progress: Callable[[float], object]
) -> Loaded:
    """Reads the file into the index; raises OSError where the disk fails."""
    if _set_original_aside(file):
        queue.readers = FileReaders(FileReader(file.path))
    torn = _set_torn_line_aside(file)
    skipped = old = 0
    before, offset = kept.load(file, queue)
    index, first, number = queue.index, queue.readers.newest * FILE, before
    with open(file.path, "rb", buffering=1 << 20) as lines:
        lines.seek(offset)
        for number, line in enumerate(lines, before + 1):
            if number % PROGRESS_LINES == 0:
                progress(offset / max(1, file.size))
            place, offset = Place(first + offset, len(line)), offset + len(line)
            try:
                index.add(scan(line), place)
            except (OtherVersion, *BROKEN) as e:
                if isinstance(e, OtherVersion):
                    if e.version in OLD_VERSIONS:
                        old += 1
                        continue
                    file.others += len(line)
                skipped += 1
                if skipped <= MANY:
                    logger.warning("%s:%d: line skipped: %s", file.path, number, e)
    _warn(file.path, skipped, old)
    file.lines = number
    progress(1.0)
    return Loaded(index.entries, index.samples, skipped + old, torn, old)


def _warn(path: Path, skipped: int, old: int) -> None:
    if skipped > MANY:
        logger.warning("%s: %d lines skipped in all", path, skipped)
    if old:
        logger.warning(
            "%s: %d lines are of an older version, and of no use; they go to files of their "
            "own, as %s.v%d",
            path,
            old,
            path.name,
            OLD_VERSIONS[-1],
        )


def _set_original_aside(file: JournalFile) -> bool:
    """Renames a file of the original sglang-cached, which has this name as well; False if it is
    none."""
    path, count = file.path, 0
    with open(path, "rb", buffering=1 << 20) as lines:
        for line in lines:
            if not is_foreign(line) and (line.endswith(b"\n") or not count):
                return False
            count += 1
    if not count:
        return False
    aside = path.with_name(f"{path.name}.original")
    if aside.exists():
        aside = aside.with_name(f"{aside.name}.{time.time_ns()}")
    path.replace(aside)
    file.reopen()
    logger.warning(
        "%s: was written by another program, as the original sglang-cached (%d lines), and is "
        "of no use here; it is in %s now",
        path,
        count,
        aside.name,
    )
    return True


def _set_torn_line_aside(file: JournalFile) -> int:
    """Cuts off the bytes behind the last newline, and keeps them in a file of their own."""
    with open(file.path, "rb+") as journal:
        end = journal.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            journal.seek(start)
            tail = journal.read(step) + tail
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            with open(file.path.with_suffix(".jsonl.torn"), "ab", opener=private) as aside:
                aside.write(torn + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            journal.truncate(end - len(torn))
            logger.warning("%s: torn last line (%d bytes) set aside", file.path, len(torn))
    file.size = end - len(torn)
    return len(torn)
