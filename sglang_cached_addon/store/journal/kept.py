"""`cache.index`: the index of a large journal, kept so that the journal need not be read to be
opened.

It is only of use if it is of the first bytes of the journal that is there; otherwise the index is
made anew. Written before and after serving, when nobody waits; losing it costs no more than time.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import orjson

from sglang_cached_addon.store.files import private
from sglang_cached_addon.store.journal.extents import FILES
from sglang_cached_addon.store.journal.file import JournalFile, try_to
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.lines import BROKEN
from sglang_cached_addon.store.journal.queue import Queue
from sglang_cached_addon.store.journal.sketches import remove

INDEX_VERSION = 3

INDEX_BYTES = 64 << 20
"""The index of a smaller file is not kept: reading the file takes no time, and finds damage."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """An index that was kept, and of what."""

    index: Index
    lines: int
    bytes: int
    """The lines, and the bytes, at the beginning of the journal that it is of."""
    number: int
    """The number of the file in its offsets."""
    others: int
    """As `JournalFile.others`."""


def read(journal: Path) -> Kept | None:
    """The index that was kept of a journal, for whoever has its folder; None where none is of
    use."""
    path = _beside(journal)
    try:
        with open(path, "rb") as kept:
            head, data = orjson.loads(kept.readline()), kept.read()
        lines, size, number = int(head["lines"]), int(head["bytes"]), int(head["number"])
        if head["v"] != INDEX_VERSION or head["sum"] != zlib.crc32(data):
            raise ValueError("damaged, or of another version")
        if not 0 <= number < FILES or head["tail"] != _tail(journal, size):
            raise ValueError("not of this file")
        return Kept(Index.load(data), lines, size, number, int(head["others"]))
    except FileNotFoundError:
        return None
    except (OSError, AttributeError, *BROKEN) as e:
        logger.info("%s: %s; made anew", path, e)
        return None


def _beside(journal: Path) -> Path:
    return journal.with_suffix(".index")


class KeptIndex:
    """The index file of one folder."""

    def __init__(self, journal: Path) -> None:
        self._path = _beside(journal)
        self._bytes = 0
        """The bytes of the journal that the index file is of."""

    def load(self, file: JournalFile, queue: Queue) -> tuple[int, int]:
        """Takes over the index that was kept of this journal. Returns of how many lines, and bytes,
        at the beginning of the file that is: none where no index is of use."""
        kept = read(file.path)
        if kept is None:
            return 0, 0
        queue.index, file.others, self._bytes = kept.index, kept.others, kept.bytes
        queue.readers.renumber(kept.number)
        return kept.lines, kept.bytes

    def keep(self, index: Index, file: JournalFile, number: int) -> None:
        """Writes the index, if the journal is large and has grown. No line may wait."""
        if file.size < INDEX_BYTES or file.size == self._bytes:
            return
        pieces = list(index.dump())
        aside = self._path.with_suffix(".index.new")
        head = {
            "v": INDEX_VERSION,
            "sum": reduce(lambda checksum, piece: zlib.crc32(piece, checksum), pieces, 0),
            "lines": file.lines,
            "bytes": file.size,
            "number": number,
            "others": file.others,
            "tail": _tail(file.path, file.size),
        }
        try:
            with open(aside, "wb", opener=private) as kept:
                kept.writelines([orjson.dumps(head) + b"\n", *pieces])
            aside.replace(self._path)
            self._bytes = file.size
        except OSError as e:
            logger.debug("%s", e)
            try_to(lambda: aside.unlink(missing_ok=True))

    def drop(self) -> None:
        """Removes the file, and the sketches, as what they say is not true any more; raises
        OSError."""
        self._bytes = 0
        self._path.unlink(missing_ok=True)
        remove(self._path.parent)


def _tail(journal: Path, size: int) -> str:
    """The end of the first so many bytes of a journal, which tells it from others."""
    with open(journal, "rb") as file:
        file.seek(max(0, size - 64))
        return file.read(min(size, 64)).hex()
