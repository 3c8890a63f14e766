"""`cache.index`: the index of a large journal, kept so that the journal need not be read to be
opened.

It is only of use if it is of the first bytes of the journal that is there; otherwise the index is
made anew. Written before and after serving, when nobody waits; losing it costs no more than time.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import orjson

from sglang_cached_addon.store.files import private
from sglang_cached_addon.store.journal.extents import FILES
from sglang_cached_addon.store.journal.file import JournalFile, try_to
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.lines import BROKEN

INDEX_VERSION = 3

INDEX_BYTES = 64 << 20
"""The index of a smaller file is not kept: reading the file takes no time, and finds damage."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """An index, and which part of the file it is of."""

    index: Index
    lines: int
    """The number of lines at the beginning of the file that it is of."""
    bytes: int
    """The bytes of those lines."""
    others: int
    """The bytes of those that are of later format versions."""
    number: int
    """The number that the file has in the index."""


class KeptIndex:
    """The index file of one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cache.index"
        self._bytes = 0
        """The bytes of the journal that the index file is of."""

    def load(self, journal: Path) -> Kept | None:
        """The index that was kept of this journal; None if there is none that is of use."""
        try:
            with open(self._path, "rb") as file:
                head, data = orjson.loads(file.readline()), file.read()
            lines, size, number = int(head["lines"]), int(head["bytes"]), int(head["number"])
            if head["v"] != INDEX_VERSION or head["sum"] != zlib.crc32(data):
                raise ValueError("damaged, or of another version")
            if not 0 <= number < FILES or head["tail"] != _tail(journal, size):
                raise ValueError("not of this file")
            kept = Kept(Index.load(data), lines, size, int(head["others"]), number)
        except FileNotFoundError:
            return None
        except (OSError, AttributeError, *BROKEN) as e:
            logger.info("%s: %s; made anew", self._path, e)
            return None
        self._bytes = size
        return kept

    def keep(self, index: Index, file: JournalFile, number: int) -> None:
        """Writes the index, if the journal is large and has grown. No line may wait."""
        if file.size < INDEX_BYTES or file.size == self._bytes:
            return
        pieces, checksum = [], 0
        for piece in index.dump():
            pieces.append(piece)
            checksum = zlib.crc32(piece, checksum)
        aside = self._path.with_suffix(".index.new")
        head = {
            "v": INDEX_VERSION,
            "sum": checksum,
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
        """Removes the file, as what it says is not true any more; raises OSError."""
        self._bytes = 0
        self._path.unlink(missing_ok=True)


def _tail(journal: Path, size: int) -> str:
    """The end of the first so many bytes of a journal, which tells it from others."""
    with open(journal, "rb") as file:
        file.seek(max(0, size - 64))
        return file.read(min(size, 64)).hex()
