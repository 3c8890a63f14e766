"""Copying a journal to a file aside, without the lines that do not count, while it is added to.

A thread copies the lines that count, and then what was added meanwhile, until little of that is
left; then the writer, which alone knows when nothing is added, copies the rest, and gives the file
its name (see `compaction`). What was added meanwhile is copied as it is, so that nothing comes back
that it has replaced. At last the thread tells the index where each line has gone, a little at a
time. It can be given up at any moment before the file has its name: then nothing has happened.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import IO

from sglang_cached_addon.core.cache import Addition
from sglang_cached_addon.store.files import private, sync_folder
from sglang_cached_addon.store.journal import lines
from sglang_cached_addon.store.journal.extents import FILE, Extent, Place
from sglang_cached_addon.store.journal.file import JournalFile
from sglang_cached_addon.store.journal.queue import SLICE, Queue

LITTLE = 1 << 20
"""Bytes that the writer may copy, while new lines wait for it."""

TURN_SECONDS = 0.0005
"""How long this thread keeps the interpreter before the event loop may have it: if it were longer,
there would be no end to the copying under load."""

_MOVE = struct.Struct("<32sQIIQI")
"""Where samples have gone: key, offset before, slot, number of samples, offset and length after."""

_Part = tuple[bytes, int, int, bytes]
"""The key, slot and number of samples of a line, and that line."""


class GivenUp(Exception):
    """Nobody wants the copy any more."""


class Rewriting:
    """One copy of the journal, from its beginning to its end."""

    def __init__(self, file: JournalFile, queue: Queue) -> None:
        """Begins; raises OSError."""
        self.failure: Exception | None = None
        """Why it cannot be done."""
        self.is_ready = False
        """Whether what is left is for the writer to copy."""
        self.is_named = False
        """Whether the copy has the journal's name."""
        self.others = self.lines = self.size = 0
        """Of the copy: the bytes of lines of later format versions, the lines, and all bytes."""
        self._journal, self._queue = file, queue
        self._source, self._former = queue.readers.current, queue.readers.newest
        self._start = file.size
        """What is behind this offset of the journal is copied as it is."""
        self._offset = 0
        """How far the journal is copied."""
        self._orphans: dict[bytes, bytes] = {}
        """By key, the calls of lines that were left out, for the key's next line."""
        self._moves = bytearray()
        self._given_up = False
        self._goes_on = threading.Event()
        """Set when the copy has its name, or is given up."""
        self._asides: dict[str, tuple[IO[bytes], int]] = {}
        """By kind, the files for lines that are of no use, with their sizes before."""
        self._exits = ExitStack()
        # A file of its own, whatever file of this name others still write to.
        file.aside.unlink(missing_ok=True)
        copy = open(file.aside, "wb", opener=private)  # noqa: SIM115
        self._copied = self._exits.enter_context(copy)
        self._thread = threading.Thread(target=self._run, name="rewriting", daemon=True)
        self._thread.start()

    # For the writer's thread

    @property
    def is_done(self) -> bool:
        """Whether the index knows where all lines have gone, or the copying has failed."""
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Ends it, without waiting for the disk."""
        self._given_up = True
        self._goes_on.set()

    def finish(self, *, syncs: bool) -> None:
        """Copies the rest, so that the copy is whole; raises OSError. Lines may not be added to the
        journal meanwhile."""
        self._copy(self._journal.size)
        self._copied.flush()
        if syncs:
            os.fsync(self._copied.fileno())

    def named(self, number: int) -> None:
        """Notes that the copy has the journal's name, and this number."""
        self._number = number
        self.is_named = True
        self._goes_on.set()

    def join(self) -> None:
        self._thread.join()

    # In its own thread

    def _run(self) -> None:
        try:
            with self._exits:
                self._rewrite()
        except GivenUp:
            pass
        except Exception as e:  # whoever waits for it must be told, whatever it is
            self.failure = e
        self._queue.wake()

    def _rewrite(self) -> None:
        try:
            self._copy_all_but_a_little()
            self.is_ready = True
            self._queue.wake()
            self._goes_on.wait()
            if not self.is_named:
                raise GivenUp
        except BaseException:
            for aside, size in self._asides.values():
                with suppress(OSError):
                    aside.flush()
                    aside.truncate(size)
            raise
        # If this fails, the removed lines are gone, but might be back after a power cut: who asked
        # for it must hear of that.
        sync_folder(self._journal.path.parent)
        self._tell_where_all_has_gone()

    def _copy_all_but_a_little(self) -> None:
        self._copy(self._journal.size)
        for aside, _ in self._asides.values():
            aside.flush()
            os.fsync(aside.fileno())
        while True:
            self._copied.flush()
            os.fsync(self._copied.fileno())
            # What is left is what has come while the disk was at it.
            if self._journal.size - self._offset <= LITTLE:
                break
            self._copy(self._journal.size)
        if self._given_up:
            raise GivenUp

    def _copy(self, end: int) -> None:
        """Copies what counts up to an offset of the journal."""
        turn = time.monotonic() + TURN_SECONDS
        with self._source.open() as source:
            source.seek(self._offset)
            while self._offset < end:
                if self._given_up:
                    raise GivenUp
                line = source.readline()
                for key, slot, count, kept in self._kept(line):
                    if count:
                        before = self._former * FILE + self._offset
                        self._moves += _MOVE.pack(key, before, slot, count, self.size, len(kept))
                    self._copied.write(kept)
                    self.size += len(kept)
                    self.lines += 1
                self._offset += len(line)
                if time.monotonic() > turn:
                    time.sleep(0)  # lets the event loop have its turn
                    turn = time.monotonic() + TURN_SECONDS

    def _kept(self, line: bytes) -> Iterator[_Part]:
        """What is to be in the copy of a line."""
        try:
            head = lines.scan(line)
        except lines.OtherVersion as e:
            if e.version in lines.OLD_VERSIONS:
                self._set_aside(f"v{e.version}", line)
            else:
                self.others += len(line)
                yield b"", 0, 0, line
            return
        except lines.BROKEN:
            self._set_aside("broken", line)
            return
        if self._offset < self._start:
            place = Place(self._former * FILE + self._offset, len(line))
            extents = self._queue.extents_of(head.key, place)
        else:
            extents = [Extent(Place(0, 0), head.at, 0, head.slot, head.samples)]
        if not extents:
            if call := lines.call_of(line):
                self._orphans[head.key] = call[2]
            return
        content = self._orphans.pop(head.key, b"") if head.samples else b""
        if content or sum(extent.samples for extent in extents) < head.samples:
            yield from _rewritten(line, extents, content)
        else:
            yield head.key, head.slot, head.samples, line

    def _set_aside(self, kind: str, line: bytes) -> None:
        if kind not in self._asides:
            path = self._journal.path
            aside = open(path.with_name(f"{path.name}.{kind}"), "ab", opener=private)  # noqa: SIM115
            self._asides[kind] = (self._exits.enter_context(aside), aside.tell())
        self._asides[kind][0].write(line.removesuffix(b"\n") + b"\n")

    def _tell_where_all_has_gone(self) -> None:
        first = self._number * FILE
        step = SLICE * _MOVE.size
        for start in range(0, len(self._moves), step):
            if self._given_up:
                raise GivenUp
            self._queue.move(
                (key, before, slot, count, Place(first + after, length))
                for key, before, slot, count, after, length in _MOVE.iter_unpack(
                    self._moves[start : start + step]
                )
            )
            time.sleep(0)


def _rewritten(line: bytes, extents: Iterable[Extent], content: bytes) -> Iterator[_Part]:
    """One line for each extent that is left of a line. The first one has the call: the line's own,
    or `content`."""
    call = lines.call_of(line)
    content = call[2] if call else content
    head, samples = lines.parse(line)
    raw = head.raw
    for extent in extents:
        some = samples[extent.skip : extent.skip + extent.samples]
        kept = lines.encode(Addition(head.key, head.dialect, content, some, raw), extent.slot)
        yield head.key, extent.slot, extent.samples, kept
        content, raw = b"", b""
