"""Writing what is read of a folder into a file: an archive, a data set of chats, or a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import orjson

from sglang_cached_addon.archive import dataset, parquet, record
from sglang_cached_addon.archive.reading import Reading
from sglang_cached_addon.archive.record import Record
from sglang_cached_addon.core.families import FAMILY


@dataclass(slots=True)
class Written:
    """What was written."""

    entries: int = 0
    samples: int = 0
    left_out: int = 0
    """Entries that have no such shape."""

    def counting(self, records: Iterable[Record]) -> Iterator[Record]:
        """Counts what passes, but for variants of calls."""
        for each in records:
            if each.pool.dialect != FAMILY:
                self.entries += 1
                self.samples += len(each.pool.samples)
            yield each


def _jsonl(reading: Reading, out: IO[bytes]) -> Written:
    done = Written()
    out.write(record.write_state(reading.state))
    for each in done.counting(reading.records()):
        out.write(record.write(each))
    return done


def _chat(reading: Reading, out: IO[bytes]) -> Written:
    done = Written()
    for entry in reading.entries():
        chats = list(dataset.chats(entry))
        out.writelines(orjson.dumps(chat) + b"\n" for chat in chats)
        done.samples += len(chats)
        if chats:
            done.entries += 1
        else:
            done.left_out += 1
    return done


def _parquet(reading: Reading, out: IO[bytes]) -> Written:
    done = Written()
    records = (each for each in reading.records() if each.pool.dialect != FAMILY)
    parquet.write(done.counting(records), out)
    return done


FORMATS: dict[str, Callable[[Reading, IO[bytes]], Written]] = {
    "jsonl": _jsonl,
    "chat": _chat,
    "parquet": _parquet,
}
"""What writes each format. Raises OSError, and `parquet.NoPyarrow`."""
