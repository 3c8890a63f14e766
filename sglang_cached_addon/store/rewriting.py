"""A journal is written anew without what does not count, while others go on adding to it.

A thread copies the lines that count to a file aside, and then what was added meanwhile, until there
is little left of it; then the writer, which alone knows when nothing is added, copies the rest, and
gives the file its name. What was added is copied as it is, so that nothing comes back that it has
replaced. At last the thread tells the index where all has gone, a little at a time. It can be given
up at any moment before the file has its name: then nothing has happened.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Protocol

from sglang_cached_addon.store.files import Reader, private, sync_folder
from sglang_cached_addon.store.index import FILE, Place, Run
from sglang_cached_addon.store.lines import (
    OLD_VERSIONS,
    OtherVersion,
    call_of,
    encode,
    parse,
    scan,
)

LITTLE = 1 << 20
"""Bytes that the writer may copy, while what comes waits for it."""

SLICE = 64
"""Entries that are changed with one taking of the lock, which the event loop wants, too."""

TURN_SECONDS = 0.0005
"""How long the event loop may wait for its turn: less, and there is no end to it under load."""

_MOVE = struct.Struct("<32sQIIQI")


_Part = tuple[bytes, int, int, bytes]
"""Key, slot and number of samples of a line, and that line."""


class Owner(Protocol):
    """The journal. All may be called by any thread."""

    @property
    def size(self) -> int:
        """Bytes of the file, whose lines the index all knows."""

    def runs(self, key: bytes, place: Place) -> list[Run]:
        """What counts of a line."""

    def move(self, moves: Iterable[tuple[bytes, int, int, int, Place]]) -> None:
        """Tells the index where samples have gone: see `Index.move`."""

    def wake(self) -> None:
        """There is something for the writer to do."""


class GivenUp(Exception):
    """Nobody wants it any more."""


class Rewriting:
    """From a file, of which the index has the number, to one aside that is to take its place."""

    def __init__(self, owner: Owner, source: Reader, number: int, path: Path) -> None:
        """`path` is the journal's."""
        self.aside = path.with_name(path.name + ".new")
        self.failure: Exception | None = None
        self.is_ready = False
        """What is left is for the writer to copy."""
        self.others = self.lines = self.size = 0
        """In the file aside: bytes of lines of later versions, lines, and bytes."""
        self._owner = owner
        self._source, self._number = source, number
        self._path = path
        self._start = owner.size
        """What is behind is copied as it is."""
        self._offset = 0
        self._orphans: dict[bytes, bytes] = {}
        """What was asked: of lines that are left out, for the next of the key."""
        self._moves = bytearray()
        self._given_up = False
        self._is_named = threading.Event()
        self._asides: dict[str, tuple[IO[bytes], int]] = {}
        self._exits = ExitStack()
        # Raises OSError. It is a file of its own, whatever one of this name others still write to.
        self.aside.unlink(missing_ok=True)
        file = open(self.aside, "wb", opener=private)  # noqa: SIM115
        self._file = self._exits.enter_context(file)
        self._thread = threading.Thread(target=self._run, name="rewriting", daemon=True)
        self._thread.start()

    # For the writer's thread

    @property
    def is_done(self) -> bool:
        """The index knows where all has gone, or it has failed."""
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """As if it had never been; does not wait for the disk."""
        self._given_up = True
        self._is_named.set()

    def finish(self, *, syncs: bool) -> None:
        """Copies the rest; the file is whole then. Raises OSError. Nothing is written meanwhile, so
        that this does not wait for the disk but where each write does."""
        self._copy(self._owner.size)
        self._file.flush()
        if syncs:
            os.fsync(self._file.fileno())

    def named(self, number: int) -> None:
        """The file has its name, and this number."""
        self._new_number = number
        self._is_named.set()

    def join(self) -> None:
        self._thread.join()

    # In its own

    def _run(self) -> None:
        try:
            with self._exits:
                self._rewrite()
        except GivenUp:
            pass
        except Exception as e:  # who waits for it must be told, whatever it is
            self.failure = e
        self._owner.wake()

    def _rewrite(self) -> None:
        try:
            self._copy(self._owner.size)
            for aside, _ in self._asides.values():
                aside.flush()
                os.fsync(aside.fileno())
            # What is left for the writer is then what has come while the disk was at it.
            while True:
                self._file.flush()
                os.fsync(self._file.fileno())
                if self._owner.size - self._offset <= LITTLE:
                    break
                self._copy(self._owner.size)
        except BaseException:
            self._take_back()
            raise
        if self._given_up:
            self._take_back()
            raise GivenUp
        self.is_ready = True
        self._owner.wake()
        self._is_named.wait()
        if self._given_up:
            self._take_back()
            raise GivenUp
        # If this fails the lines are gone, but might be back after a power cut: not to be promised.
        sync_folder(self._path.parent)
        self._tell()

    def _take_back(self) -> None:
        for aside, size in self._asides.values():
            with suppress(OSError):
                aside.flush()
                aside.truncate(size)

    def _copy(self, end: int) -> None:
        """Copies what counts up to there."""
        turn = time.monotonic() + TURN_SECONDS
        with self._source.open() as source:
            source.seek(self._offset)
            while self._offset < end:
                if self._given_up:
                    raise GivenUp
                line = source.readline()
                for key, slot, count, kept in self._kept(line):
                    old = self._number * FILE + self._offset
                    if count:
                        self._moves += _MOVE.pack(key, old, slot, count, self.size, len(kept))
                    self._file.write(kept)
                    self.size += len(kept)
                    self.lines += 1
                self._offset += len(line)
                if time.monotonic() > turn:
                    time.sleep(0)  # lets the event loop have its turn
                    turn = time.monotonic() + TURN_SECONDS

    def _kept(self, line: bytes) -> Iterator[_Part]:
        """What there is to be of a line."""
        try:
            head = scan(line)
        except OtherVersion as e:
            if e.version in OLD_VERSIONS:
                self._set_aside(f"v{e.version}", line)
            else:
                self.others += len(line)
                yield b"", 0, 0, line
            return
        except (ValueError, KeyError, TypeError):
            self._set_aside("broken", line)
            return
        if self._offset < self._start:
            place = Place(self._number * FILE + self._offset, len(line))
            runs = self._owner.runs(head.key, place)
        else:
            runs = [Run(Place(0, 0), head.at, 0, head.slot, head.samples)]
        if not runs:
            if call := call_of(line):
                self._orphans[head.key] = call[2]
            return
        content = self._orphans.pop(head.key, None) if head.samples else None
        if content or sum(run.samples for run in runs) < head.samples:
            yield from _rewritten(line, runs, content)
        else:
            yield head.key, head.slot, head.samples, line

    def _set_aside(self, kind: str, line: bytes) -> None:
        if kind not in self._asides:
            name = self._path.with_name(f"{self._path.name}.{kind}")
            aside = open(name, "ab", opener=private)  # noqa: SIM115
            self._asides[kind] = (self._exits.enter_context(aside), aside.tell())
        self._asides[kind][0].write(line.removesuffix(b"\n") + b"\n")

    def _tell(self) -> None:
        first = self._new_number * FILE
        step = SLICE * _MOVE.size
        for start in range(0, len(self._moves), step):
            if self._given_up:
                raise GivenUp
            self._owner.move(
                (key, old, slot, count, Place(first + new, length))
                for key, old, slot, count, new, length in _MOVE.iter_unpack(
                    self._moves[start : start + step]
                )
            )
            time.sleep(0)


def _rewritten(line: bytes, runs: Iterable[Run], content: bytes | None) -> Iterator[_Part]:
    """What is left of a line, with what was asked, if it has not said that itself."""
    call = call_of(line)
    content = call[2] if call else content
    key, dialect, samples, raw, _ = parse(line)
    for run in runs:
        some = samples[run.skip : run.skip + run.samples]
        yield key, run.slot, run.samples, encode(key, dialect, content, some, raw, run.slot)
        content, raw = None, b""
