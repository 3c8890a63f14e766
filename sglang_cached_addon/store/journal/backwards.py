"""The lines of a journal from the newest to the oldest, while the journal is added to.

For a thread. A file that is written anew meanwhile is read on as it was. Where a former reading has
ended, a mark says: the line at a place, and when it was stored, so that the place is found again in
another file, as lines are in the order in which they were stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sglang_cached_addon.store.journal.extents import PENDING
from sglang_cached_addon.store.journal.lines import BROKEN, OtherVersion, scan
from sglang_cached_addon.store.journal.reader import FileReader

PIECE = 1 << 17
"""Bytes that are read, and looked through, in one go: they fit into a processor's own memory."""

LATELY = 128 << 20
"""Bytes at the end of a file: lines that waited a moment ago are in these."""

Hits = Callable[[bytes], Iterator[int]]
"""Where in some lines there is something, from the end on."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A line that was read, and behind which all was read."""

    offset: int
    length: int
    sum: str
    """What the line ends with."""
    at: float
    """When its samples were stored: Unix seconds."""

    @classmethod
    def of(cls, offset: int, line: bytes) -> Mark:
        try:
            at = scan(line).at
        except (OtherVersion, *BROKEN):
            at = 0.0
        return cls(offset, len(line), _sum(line), at)

    @classmethod
    def read(cls, text: str) -> Mark:
        """Raises ValueError for what no mark was written as."""
        offset, length, checksum, at = text.split("-")
        return cls(int(offset, 36), int(length, 36), checksum, float(at))

    def __str__(self) -> str:
        return "-".join((_digits(self.offset), _digits(self.length), self.sum, f"{self.at:.6f}"))


class Step(NamedTuple):
    """A line that was come to; without a hit, only to say how far it is."""

    offset: int
    line: bytes
    is_hit: bool

    def __str__(self) -> str:
        """The mark of this line."""
        return str(Mark.of(self.offset, self.line))


def lines_before(
    path: Path, mark: Mark | None, waiting: Iterable[tuple[int, bytes]], hits: Hits
) -> Iterator[Step]:
    """The lines before a mark, or all, newest first: those that are hit, and the first one of each
    piece of the file. `waiting` are lines that are not in the file yet, in their order. Raises
    OSError."""
    pending = list(waiting)
    written = {line for _, line in pending}  # some may have come to be in the file meanwhile
    if mark and mark.offset >= PENDING:
        is_there = any(offset == mark.offset for offset, _ in pending)
        pending = [one for one in pending if one[0] < mark.offset] if is_there else []
        mark = None if is_there else mark  # else it has come to be in the file
    elif mark:
        pending = []
    file = FileReader(path)
    end = _end(file, mark)
    for offset, line in reversed(pending):
        yield Step(offset, line, any(True for _ in hits(line)))
    for start, lines in _pieces(file, end):
        begin = len(lines)
        for hit in hits(lines):
            if hit < begin:
                begin, stop = lines.rfind(b"\n", 0, hit) + 1, lines.find(b"\n", hit) + 1
                if (line := lines[begin:stop]) not in written:
                    yield Step(start + begin, line, True)
        yield Step(start, lines[: lines.find(b"\n") + 1], False)


def _pieces(file: FileReader, end: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines up to an offset, some at a time and from the end on, with where they begin."""
    size = PIECE
    while end > 0:
        begin = max(0, end - size)
        data = file.read(begin, end - begin, waits=True) or b""
        if len(data) < end - begin:
            return  # somebody has cut it
        start = data.find(b"\n") + 1 if begin else 0
        if begin and start in (0, len(data)):
            size *= 2  # a line is longer
            continue
        yield begin + start, data[start:]
        end, size = begin + start, PIECE


def _end(file: FileReader, mark: Mark | None) -> int:
    """Where the lines end that come before a mark."""
    size = file.size
    if mark is None:
        return _whole(file, size)
    line = file.read(mark.offset, mark.length, waits=True) if mark.offset < size else None
    if line and len(line) == mark.length and _sum(line) == mark.sum:
        return mark.offset
    if mark.offset >= PENDING and (start := _lately(file, mark)) is not None:
        return start
    return _without(file, _before(file, _whole(file, size), mark.at), mark)


def _lately(file: FileReader, mark: Mark) -> int | None:
    """Where the line of a mark begins, if that was written lately."""
    needle, end = b',"sum":"%b"}\n' % mark.sum.encode(), _whole(file, file.size)
    for start, lines in _pieces(file, end):
        if (at := lines.rfind(needle)) >= 0:
            return start + lines.rfind(b"\n", 0, at) + 1
        if end - start > LATELY:
            break
    return None


def _whole(file: FileReader, end: int) -> int:
    """Where the last whole line ends that ends at an offset or before."""
    while end > 0:
        begin = max(0, end - PIECE)
        data = file.read(begin, end - begin, waits=True) or b""
        if at := data.rfind(b"\n") + 1:
            return begin + at
        end = begin
    return 0


def _before(file: FileReader, end: int, at: float) -> int:
    """Where the lines end that were stored up to a time."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        start = _whole(file, middle)
        line = _line(file, start)
        if Mark.of(start, line).at <= at:
            low = start + len(line)
        else:
            high = start
    return low


def _without(file: FileReader, end: int, mark: Mark) -> int:
    """Where the lines end that come before the line of a mark, if that is one of the last that end
    at an offset and were stored when it was."""
    start = end
    while start > 0:
        start = _whole(file, start - 1)
        line = _line(file, start)
        if _sum(line) == mark.sum:
            return start
        if Mark.of(start, line).at < mark.at:
            break
    return end


def _line(file: FileReader, start: int) -> bytes:
    size = PIECE
    while True:
        data = file.read(start, size, waits=True) or b""
        if stop := data.find(b"\n") + 1:
            return data[:stop]
        if len(data) < size:
            return data
        size *= 2


def _sum(line: bytes) -> str:
    return line[-11:-3].decode("ascii", "replace")


def _digits(number: int) -> str:
    """A number in the digits of base 36."""
    found = ""
    while number:
        number, digit = divmod(number, 36)
        found = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + found
    return found or "0"
