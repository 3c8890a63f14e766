"""The journal: `cache.jsonl`, lines added at the end, and the index of what is in it.

What a line says is in `lines`. One thread owns the file: it writes what has gathered, at the latest
`FLUSH_SECONDS` after it came, so a killed process loses no more than that; what a power cut may
cost, `fsync` says. While the disk does not keep up, `MAX_PENDING` bytes wait, and what comes
beyond is not kept. A clear of all cuts the file to nothing; one
of some keys takes all of their lines out, and no other: what is left of them is written to
`cache.jsonl.new` and renamed, so there is no half of it. The index of a large file is kept in
`cache.index`, and made anew when it is missing or not of this file. At open, a torn last line is
moved to `cache.jsonl.torn`; a broken line elsewhere, or one of another format version, is skipped
and counted. Compacting takes out the lines that no longer count, and moves broken
ones to `cache.jsonl.broken`; it happens by itself when dead lines are most of a large file.
A lock on the folder keeps a second process out.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.settings import FSYNC
from sglang_cached_addon.store.index import PENDING, Head, Index, Place, Run
from sglang_cached_addon.store.lines import (
    OLD_VERSIONS,
    OtherVersion,
    call_of,
    encode,
    key_of,
    parse,
    samples_of,
    scan,
)
from sglang_cached_addon.store.state import StoreError, sync_folder
from sglang_cached_addon.store.syncer import Syncer

FLUSH_SECONDS = 0.02
"""How long a line may wait for company."""

RETRY_SECONDS = 1.0
"""Between attempts to write while the disk refuses."""

MAX_PENDING = 64 << 20
"""Bytes of lines that may wait for the disk."""

PROGRESS_LINES = 20_000
"""How often it is told how much is read."""

INDEX_VERSION = 1

INDEX_BYTES = 64 << 20
"""The index of a smaller file is not kept: reading the file takes no time, and finds damage."""

COMPACT_BYTES = 1 << 20
"""A smaller file is not compacted by itself."""

logger = logging.getLogger(__name__)

IsCleared = Callable[[bytes], bool]
"""Whether the lines of a key are to go."""

Clear = tuple[Future[None], IsCleared | None]
"""What is done when the disk has it, and whose lines go: everybody's, if it does not say."""

Lines = list[tuple[Head, bytes, Place]]
"""Lines that wait, in the order of the file; the number of each stands for its place."""


Select = Callable[[Iterable[bytes]], Iterable[bytes]]
"""From the lines of a file to those of the one that takes its place."""


@dataclass(slots=True)
class Examined:
    """What was found in a file that was only read."""

    entries: int = 0
    samples: int = 0
    """Those that a later line has not dropped."""
    bytes: int = 0
    broken: int = 0
    others: int = 0
    """Lines of other versions."""
    torn: int = 0
    """Bytes behind the last newline."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was found at open."""

    keys: int = 0
    samples: int = 0
    skipped: int = 0
    """Lines that could not be used."""
    torn: int = 0
    """Bytes of a torn last line, moved aside."""


class Journal:
    """Appends to, loads and clears the journal of one folder."""

    def __init__(self, folder: Path, fsync: str = "interval") -> None:
        """Takes the folder (made if missing) for this process; raises `StoreError`, or ValueError
        for an `fsync` that is none of `FSYNC`."""
        if fsync not in FSYNC:
            raise ValueError(f"fsync: {fsync!r} is none of {', '.join(FSYNC)}")
        self.fsync = fsync
        self.folder = folder
        self.path = folder / "cache.jsonl"
        self._aside = folder / "cache.jsonl.new"
        self._index_path = folder / "cache.index"
        self._lock_file = _lock(folder)
        try:
            self._aside.unlink(missing_ok=True)  # of a rewriting that did not come to its end
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as e:
            os.close(self._lock_file)
            name = e.filename or self.path
            raise StoreError(f"cannot write {name}: {e.strerror}; {_CHOOSE_ANOTHER}") from e
        self.index = Index()
        """What is in the file, or waits to be. Changed under the lock."""
        self._reader = Reader(self.path)
        """Of the file that the index is of."""
        self._others = 0
        """Bytes of lines of later versions."""
        self._compact_above = COMPACT_BYTES
        self._lines = 0
        """In the file."""
        self._indexed = 0
        """Bytes of the file that the kept index is of."""
        self.restoring: Callable[[], object] = lambda: None
        """Called before a file is put back that was removed, with its folder perhaps."""
        self._serial = 0
        self._pending: Lines = []
        self._pending_bytes = 0
        self._clears: list[Clear] = []
        self._compactions: list[Future[None]] = []
        self.dropped = 0
        """Samples that were not kept, because too much was waiting for the disk."""
        self._dropping = False
        self._syncer = Syncer(self.path) if fsync == "interval" else None
        self._cannot_sync = self._cannot_read = False
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        """Set when the writer should not wait: for a clear, and at the end."""
        self._closing = False
        self._writing = self._writing_bytes = 0
        self._taken: Lines = []
        """Lines that the writer has, and not yet written."""
        self._undone: list[Clear] = []
        """Clears that it has not come to."""
        self._thread: threading.Thread | None = None

    # On the event loop: nothing here waits for the disk.

    @property
    def pending(self) -> int:
        """Lines that are not yet written."""
        return len(self._pending) + self._writing

    @property
    def pending_bytes(self) -> int:
        """Their bytes; never more than `MAX_PENDING`."""
        return self._pending_bytes + self._writing_bytes

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes | None,
        samples: Sequence[Sample],
        raw: bytes = b"",
        slot: int = 0,
    ) -> bool:
        """Queues one line with samples for the slots of a key's pool that begin at `slot`; without
        any, one that removes them all. `content` is the canonical call, or None if the journal has
        it. False if too much is waiting already: the line is not kept, then."""
        line = encode(key, dialect, content, samples, raw, slot)
        at = samples[0].stored_at if samples else 0.0
        head = Head(key, raw, slot, dialect, at, len(samples))
        with self._changed:
            if fits := self.pending_bytes + len(line) <= MAX_PENDING:
                self._serial += 1
                place = Place(PENDING + self._serial, len(line))
                self.index.add(head, place)
                self._pending.append((head, line, place))
                self._pending_bytes += len(line)
                if len(self._pending) == 1:
                    self._changed.notify()
                return fits
            self.dropped += len(samples)
            begins, self._dropping = not self._dropping, True
        if begins:
            logger.warning(
                "%s: the disk does not keep up; answers are not kept until it does", self.path
            )
        return fits

    def read(self, key: bytes, *, waits: bool) -> list[Sample] | None:
        """The samples of a key, from the disk. None if that would have to wait and is not to, or
        if some are not there yet. What is broken is reported, and found no more."""
        with self._changed:
            runs, reader = self.index.runs(key), self._reader
            waiting = {run.place: self._line(run.place) for run in runs if is_pending(run.place)}
        samples: list[Sample] = []
        for run in runs:
            place = run.place
            try:
                line = waiting[place] if place in waiting else reader.read(place, waits=waits)
                if line is None:
                    return None
                samples += samples_of(line, key)[run.skip : run.skip + run.samples]
            except OSError as e:
                if not self._cannot_read:  # each look would say it again
                    logger.warning("cannot read %s: %s", self.path, e.strerror)
                self._cannot_read = True
                return None
            except (OtherVersion, ValueError, KeyError, TypeError) as e:
                self._lose(key, place, reader, e)
        return samples

    def _line(self, place: Place) -> bytes | None:
        """A line that waits to be written."""
        lines = (*self._taken, *self._pending)
        return next((line for _, line, waiting in lines if waiting == place), None)

    def _lose(self, key: bytes, place: Place, reader: Reader, why: Exception) -> None:
        logger.warning("%s:%d: line skipped: %s", self.path, reader.number(place), why)
        with self._changed:
            if reader is self._reader:
                self.index.lose(key, place)

    turn = 0
    """Of the file: nobody else changes it."""

    def news(self) -> tuple[bytes, ...]:
        """Keys to which others have added something."""
        return ()

    def touch(self, key: bytes) -> None:
        """Notes that a key was used just now."""
        with self._changed:
            self.index.touch(key)

    def expire(self, key: bytes, since: float, now: float) -> None:
        """Forgets what does not count. Who opens the file again has to do the same."""
        with self._changed:
            self.index.expire(key, since, now)

    def forget(self, key: bytes) -> None:
        """Removes all samples of a key, until the file is opened again without its being
        compacted."""
        with self._changed:
            self.index.remove(key)

    def remove(self, key: bytes) -> None:
        """Queues a line that says that all samples of a key are gone."""
        if not self.append(key, "", None, ()):
            self.forget(key)

    def compact(self) -> Future[None]:
        """Queues the rewriting of the file without dead and broken lines; what was queued before
        is in it, where the disk takes it."""
        done: Future[None] = Future()
        with self._changed:
            self._compactions.append(done)
            self._hurry.set()
            self._changed.notify()
        return done

    def clear(self, is_cleared: IsCleared | None = None) -> Future[None]:
        """Queues the removal of some keys' lines, or of the whole file's; what was pending of them
        goes with it."""
        done: Future[None] = Future()
        with self._changed:
            self.index.clear(is_cleared)
            self._pending = _without(self._pending, is_cleared)
            self._pending_bytes = _size(self._pending)
            self._clears.append((done, is_cleared))
            self._hurry.set()
            self._changed.notify()
        return done

    def calls(self, limit: int, seconds: float) -> Iterator[tuple[bytes, str, bytes]]:
        """The key, dialect and canonical call of the stored calls, oldest first, from the file as
        it is: not more than so many, and not for longer. To be used in a thread; a file that
        cannot be read has none."""
        return calls_of(self.path, limit, seconds)

    # Before serving, and after.

    def load(self, progress: Callable[[float], object] = lambda share: None) -> Loaded:
        """Reads what is there into the index, then starts the writer. `progress` is told what share
        is read, now and then.

        Raises `StoreError` where the disk fails; a broken line is no such failure.
        """
        try:
            loaded = self._load(progress)
        except OSError as e:
            raise StoreError(f"cannot read {self.path}: {e.strerror}; {_CHOOSE_ANOTHER}") from e
        if self._is_mostly_dead():
            self.compact()
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()
        return loaded

    def _load(self, progress: Callable[[float], object]) -> Loaded:
        torn = self._set_torn_line_aside()
        skipped = old = 0
        size = max(1, self.path.stat().st_size)
        before, offset = self._load_index()
        number = before
        with open(self.path, "rb", buffering=1 << 20) as lines:
            lines.seek(offset)
            for number, line in enumerate(lines, before + 1):
                if number % PROGRESS_LINES == 0:
                    progress(offset / size)
                place, offset = Place(offset, len(line)), offset + len(line)
                try:
                    self.index.add(scan(line), place)
                except OtherVersion as e:
                    if e.version in OLD_VERSIONS:
                        old += 1
                    else:
                        self._others += len(line)
                        skipped += 1
                        logger.warning("%s:%d: line skipped: %s", self.path, number, e)
                except (ValueError, KeyError, TypeError) as e:
                    skipped += 1
                    logger.warning("%s:%d: line skipped: %s", self.path, number, e)
        if old:
            logger.warning(
                "%s: %d lines are of an older version, and of no use; they go to files of their "
                "own, as %s.v%d",
                self.path,
                old,
                self.path.name,
                OLD_VERSIONS[-1],
            )
            self.compact()
        progress(1.0)
        self._lines = number
        return Loaded(len(self.index), self.index.samples, skipped + old, torn)

    def _load_index(self) -> tuple[int, int]:
        """Takes the index that was kept; how many lines and bytes of the file it is of."""
        try:
            with open(self._index_path, "rb") as file:
                head, data = orjson.loads(file.readline()), file.read()
            lines, size = int(head["lines"]), int(head["bytes"])
            if head["v"] != INDEX_VERSION or head["sum"] != zlib.crc32(data):
                raise ValueError("damaged, or of another version")
            if head["tail"] != self._tail(size):
                raise ValueError("not of this file")
            self.index, self._others = Index.load(data), int(head["others"])
        except FileNotFoundError:
            return 0, 0
        except (OSError, ValueError, KeyError, TypeError) as e:
            logger.info("%s: %s; made anew", self._index_path, e)
            return 0, 0
        self._indexed = size
        return lines, size

    def _tail(self, size: int) -> str:
        """The end of the first so many bytes of the file, which tells it from others."""
        with open(self.path, "rb") as file:
            file.seek(max(0, size - 64))
            return file.read(min(size, 64)).hex()

    def _keep_index(self) -> None:
        """Writes the index down, if the file is large, and has grown by much or is to be closed.
        Nothing waits to be written; what fails costs no more than time."""
        size = os.fstat(self._file.fileno()).st_size
        grown = size - self._indexed
        if size < INDEX_BYTES or not (grown > max(size // 4, INDEX_BYTES) or self._closing):
            return
        with self._changed:
            if self._pending or not grown:
                return
            index, lines = self.index.copy(), self._lines
        pieces, checksum = [], 0  # not under the lock, which the event loop wants
        for piece in index.dump():
            pieces.append(piece)
            checksum = zlib.crc32(piece, checksum)
        aside = self._index_path.with_suffix(".index.new")
        head = {
            "v": INDEX_VERSION,
            "sum": checksum,
            "lines": lines,
            "bytes": size,
            "others": self._others,
            "tail": self._tail(size),
        }
        try:
            with open(aside, "wb") as file:
                file.writelines([orjson.dumps(head) + b"\n", *pieces])
            aside.chmod(os.fstat(self._file.fileno()).st_mode & 0o7777)
            aside.replace(self._index_path)
            self._indexed = size
        except OSError as e:
            logger.debug("%s", e)
            _try_to(lambda: aside.unlink(missing_ok=True))

    def close(self) -> None:
        """Writes what is pending, syncs, and gives the folder free. May be called twice."""
        if self._file.closed:
            return
        with self._changed:
            self._closing = True
            self._hurry.set()
            self._changed.notify()
        if self._thread:
            self._thread.join()
        if self._syncer:
            self._syncer.close()
        self._sync()
        self._file.close()
        os.close(self._lock_file)

    def _set_torn_line_aside(self) -> int:
        """Cuts off bytes behind the last newline, keeping them in a file of their own."""
        with open(self.path, "rb+") as journal:
            end = journal.seek(0, os.SEEK_END)
            start, tail = end, b""
            while start and b"\n" not in tail:
                step = min(start, 1 << 16)
                start -= step
                journal.seek(start)
                tail = journal.read(step) + tail
            torn = tail[tail.rfind(b"\n") + 1 :]
            if torn:
                with open(self.path.with_suffix(".jsonl.torn"), "ab") as aside:
                    aside.write(torn + b"\n")
                    aside.flush()
                    os.fsync(aside.fileno())
                journal.truncate(end - len(torn))
                logger.warning("%s: torn last line (%d bytes) set aside", self.path, len(torn))
        return len(torn)

    # In the writer's thread.

    def _write(self) -> None:
        self._keep_index()
        while True:
            try:
                if not self._step():
                    return
            except Exception:  # a thread that ends in silence would lose all that follows
                logger.exception("%s: lines lost", self.path)

    def _step(self) -> bool:
        """Waits for work and does it; False at the end."""
        with self._changed:
            while not self._has_work():
                self._changed.wait()
        self._hurry.wait(FLUSH_SECONDS)
        with self._changed:
            clears, self._clears = self._clears, []
            compactions, self._compactions = self._compactions, []
            lines, self._pending = self._pending, []
            self._taken = lines
            self._writing, self._writing_bytes = len(lines), self._pending_bytes
            self._pending_bytes = 0
            if not self._closing:
                self._hurry.clear()
        if clears:
            self._clear_all(clears)
        if lines:
            # Compacting makes room: it does not wait for a disk that has none.
            self._append_all(lines, is_patient=not compactions)
        if compactions or self._is_mostly_dead():
            self._compact_all(compactions)
        self._keep_index()
        with self._changed:
            self._writing = self._writing_bytes = 0
            return not self._is_done()

    def _has_work(self) -> bool:
        return bool(self._pending or self._clears or self._compactions or self._closing)

    def _is_done(self) -> bool:
        return self._closing and not (self._pending or self._clears or self._compactions)

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
            self._cannot_sync = False
        except OSError as e:
            if not self._cannot_sync:
                logger.warning("cannot sync %s: %s; trying on", self.path, e.strerror)
            self._cannot_sync = True

    def _append_all(self, lines: Lines, *, is_patient: bool) -> None:
        """Writes them as one run of whole lines, waiting while the disk refuses; if it is not to
        wait, they go back to where they were."""
        data = memoryview(b"".join(line for _, line, _ in lines))
        warned = False
        while True:
            start = os.fstat(self._file.fileno()).st_size
            try:
                self._be_there()
                start = os.fstat(self._file.fileno()).st_size
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
                break
            except OSError as e:
                self._cut(start)
                if not warned:
                    logger.warning("cannot write %s: %s; trying on", self.path, e.strerror or e)
                    warned = True
            if not is_patient or self._hurry.wait(RETRY_SECONDS):
                with self._changed:
                    for _, is_cleared in self._clears:
                        lines = _without(lines, is_cleared)
                    if self._clears or self._compactions or not is_patient:
                        # Clears go first; what they leave of these is still before what came since.
                        self._pending, self._writing = lines + self._pending, 0
                        self._taken = []
                        self._pending_bytes, self._writing_bytes = _size(self._pending), 0
                        return
                self._taken = []
                logger.warning("%s: %d bytes could not be written", self.path, len(data))
                return  # the end has come
        self._put_all(lines, start)
        self._lines += len(lines)
        self._taken = []
        if self._syncer:
            self._syncer.note(self._file.fileno())
        elif self.fsync == "always":
            self._sync()
        with self._changed:
            ends, self._dropping = self._dropping, False
        if ends:
            logger.warning(
                "%s: the disk keeps up again; %d samples in all were not kept",
                self.path,
                self.dropped,
            )

    def _cut(self, size: int) -> None:
        """Takes back what was written of a line."""
        _try_to(lambda: self._file.truncate(size))

    def _be_there(self) -> None:
        """Puts the file back, if somebody has removed it: what is in it is served, and would be
        gone with this process. Raises OSError."""
        if os.fstat(self._file.fileno()).st_nlink:
            return
        if not os.fstat(self._lock_file).st_nlink:
            lock = _lock(self.folder)  # a new file, unless that is somebody else's by now
            os.close(self._lock_file)
            self._lock_file = lock
        self.restoring()  # first: without it, answers might be taken for another model's
        self._replace(lambda lines: lines)
        logger.warning("%s: was removed; written anew", self.path)

    def _put_all(self, lines: Lines, offset: int) -> None:
        """Notes where lines have come to be."""
        for start in range(0, len(lines), 64):
            with self._changed:  # not for long: the event loop wants it, too
                for head, line, place in lines[start : start + 64]:
                    self.index.put(head.key, place, offset)
                    offset += len(line)

    def _clear_all(self, clears: list[Clear]) -> None:
        for number, (done, is_cleared) in enumerate(clears, 1):
            self._undone = clears[number:]
            failure = None
            try:
                if is_cleared:
                    self._rewrite(is_cleared)
                else:
                    self._drop_index()
                    # Cut to nothing: one operation, so there is no half of it.
                    self._file.truncate(0)
                    os.fsync(self._file.fileno())
                    self._others, self._lines = 0, 0
            except Exception as e:  # whoever waits for this must be told, whatever it is
                reason = e.strerror if isinstance(e, OSError) else repr(e)
                failure = StoreError(f"cannot clear {self.path}: {reason}")
            if not done.set_running_or_notify_cancel():
                continue  # nobody waits for it any more
            if failure:
                done.set_exception(failure)
            else:
                done.set_result(None)

    def _rewrite(self, is_cleared: IsCleared) -> None:
        """Without some keys' lines. A line whose key cannot be told stays, for people to look
        at."""

        def select(lines: Iterable[bytes]) -> Iterator[bytes]:
            for line in lines:
                key = key_of(line)
                if key is None or not is_cleared(key):
                    yield line

        self._replace(select)

    def _is_mostly_dead(self) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        with self._changed:
            live = self.index.bytes - self.pending_bytes + self._others
        return size > self._compact_above and live * 2 < size

    def _compact_all(self, waiting: list[Future[None]]) -> None:
        failure = None
        try:
            self._replace(self._living)
            self._compact_above = COMPACT_BYTES
        except Exception as e:  # as in a clear
            reason = e.strerror if isinstance(e, OSError) else repr(e)
            failure = StoreError(f"cannot compact {self.path}: {reason}")
            logger.warning("%s", failure)
            # Not to be tried again with every line.
            self._compact_above = os.fstat(self._file.fileno()).st_size * 5 // 4
        for done in waiting:
            if not done.set_running_or_notify_cancel():
                continue
            if failure:
                done.set_exception(failure)
            else:
                done.set_result(None)

    def _living(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Those that the index has, and those of later versions."""
        # What was asked: of dead lines, for the next of the key.
        orphans: dict[bytes, bytes] = {}
        for place, line, head in self._unbroken(lines):
            if head is None:
                yield line
                continue
            with self._changed:
                runs = [run for run in self.index.runs(head.key) if run.place == place]
            if not runs:
                if call := call_of(line):
                    orphans[head.key] = call[2]
                continue
            content = orphans.pop(head.key, None)
            if sum(run.samples for run in runs) < head.samples or content:
                yield from _rewritten(line, runs, content)
            else:
                yield line

    def _unbroken(self, lines: Iterable[bytes]) -> Iterator[tuple[Place, bytes, Head | None]]:
        """Lines with their places, and their heads but for those of later versions. Broken ones,
        and those of older versions, are on the disk in files of their own when all are taken."""
        offset = 0
        with ExitStack() as stack:
            asides: dict[str, IO[bytes]] = {}

            def set_aside(kind: str) -> None:
                if kind not in asides:
                    name = self.path.with_suffix(f".jsonl.{kind}")
                    asides[kind] = stack.enter_context(open(name, "ab"))
                    mode = os.fstat(self._file.fileno()).st_mode & 0o7777
                    os.fchmod(asides[kind].fileno(), mode)
                asides[kind].write(line.removesuffix(b"\n") + b"\n")

            for number, line in enumerate(lines, 1):
                if number % 4 == 0:
                    time.sleep(0)  # lets the event loop have its turn
                place, offset = Place(offset, len(line)), offset + len(line)
                try:
                    yield place, line, scan(line)
                except OtherVersion as e:
                    if e.version in OLD_VERSIONS:
                        set_aside(f"v{e.version}")
                    else:
                        yield place, line, None
                except (ValueError, KeyError, TypeError):
                    set_aside("broken")
            for aside in asides.values():
                aside.flush()
                os.fsync(aside.fileno())

    def _catch_up(self, index: Index) -> None:
        """Brings the index of a new file to where the present one is."""
        for _, is_cleared in (*self._undone, *self._clears):
            index.clear(is_cleared)
        for head, _, place in (*self._taken, *self._pending):
            index.add(head, place)

    def _drop_index(self) -> None:
        self._indexed = 0
        self._index_path.unlink(missing_ok=True)

    def repair(self) -> None:
        """Moves what cannot be read, and a torn last line, to `cache.jsonl.broken`. To be called
        before `load`, or instead of it; raises `StoreError`."""
        try:
            self._replace(lambda lines: (line for _, line, _ in self._unbroken(lines)))
        except OSError as e:
            raise StoreError(f"cannot repair {self.path}: {e.strerror}") from e

    def _replace(self, select: Select) -> None:
        """Puts a journal with other lines in the place of this one: written aside, synced, and
        renamed over it."""
        file = None
        index, others, offset, count = Index(), 0, 0, 0
        try:
            with self._reader.open() as lines, open(self._aside, "wb") as kept:
                # Who may not read the answers now may not read them afterwards.
                os.fchmod(kept.fileno(), os.fstat(lines.fileno()).st_mode & 0o7777)
                for line in select(lines):
                    kept.write(line)
                    count += 1
                    place, offset = Place(offset, len(line)), offset + len(line)
                    try:
                        index.add(scan(line), place)
                    except OtherVersion:
                        others += len(line)
                    except (ValueError, KeyError, TypeError):
                        pass
                kept.flush()
                os.fsync(kept.fileno())
            # Opened before it has its name: behind the renaming nothing may fail that would leave
            # us with a file that is gone.
            file = open(self._aside, "ab", buffering=0)  # noqa: SIM115
            reader = Reader(self._aside)
            self._drop_index()
            self._aside.replace(self.path)
        except BaseException:
            if file:
                file.close()
            _try_to(lambda: self._aside.unlink(missing_ok=True))
            raise
        self._file, old = file, self._file
        old.close()
        self._others, self._lines = others, count
        with self._changed:
            self._catch_up(index)
            self.index, self._reader = index, reader
        # If this fails the lines are gone, but might be back after a power cut: not to be promised.
        sync_folder(self.folder)


class Reader:
    """Reads lines of a file, also when it has got another name, or none."""

    def __init__(self, path: Path) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, place: Place, *, waits: bool) -> bytes | None:
        """A line; None if the disk would have to be waited for."""
        if waits:
            return os.pread(self._handle, place.length, place.offset)
        line = bytearray(place.length)
        try:
            count = os.preadv(self._handle, [line], place.offset, os.RWF_NOWAIT)
        except (OSError, AttributeError):  # not there, or not known to this system
            return None
        return bytes(line) if count == place.length else None

    def open(self) -> IO[bytes]:
        """The file from its beginning, whatever its name is now. Not for two at once."""
        file = os.fdopen(os.dup(self._handle), "rb")
        file.seek(0)
        return file

    def is_same(self, other: os.stat_result) -> bool:
        """Whether this is what it is of."""
        ours = os.fstat(self._handle)
        return (ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino)

    def number(self, place: Place) -> int:
        """Of a line, counted from 1."""
        found, start = 1, 0
        while start < place.offset:
            data = os.pread(self._handle, min(1 << 20, place.offset - start), start)
            if not data:
                break
            found, start = found + data.count(b"\n"), start + len(data)
        return found


def calls_of(path: Path, limit: int, seconds: float) -> Iterator[tuple[bytes, str, bytes]]:
    """As `Journal.calls`, of the file of that name."""
    deadline = time.monotonic() + seconds
    try:
        # Opened anew, so that the writer's place in the file is its own. What a clear takes
        # away meanwhile may still be seen.
        with open(path, "rb") as lines:
            for line in lines:
                if limit <= 0 or time.monotonic() > deadline:
                    return
                if (found := call_of(line)) is not None:
                    limit -= 1
                    yield found
    except OSError as e:
        logger.debug("%s", e)


def examine(path: Path, tell: Callable[[int, str], None]) -> Examined:
    """Reads a journal without taking its folder; `tell` gets the number of each broken line, and
    why. A torn last line is none of them."""
    found, index, offset = Examined(), Index(), 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            found.bytes += len(line)
            if not line.endswith(b"\n"):
                found.torn = len(line)
                break
            place, offset = Place(offset, len(line)), offset + len(line)
            try:
                parse(line)
                index.add(scan(line), place)
            except OtherVersion:
                found.others += 1
            except (ValueError, KeyError, TypeError) as e:
                found.broken += 1
                tell(number, str(e))
    found.entries, found.samples = len(index), index.samples
    return found


def is_taken(folder: Path) -> bool:
    """Whether a process has the folder now; it is not kept from it but for an instant."""
    try:
        handle = os.open(folder / "cache.lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


_CHOOSE_ANOTHER = "choose another folder with --cache-path"


def _lock(folder: Path) -> int:
    """Takes the folder's lock; a file descriptor to be closed to release it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "cache.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise StoreError(f"cannot use {folder}: {e.strerror}; {_CHOOSE_ANOTHER}") from e
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise StoreError(
            f"{folder} is in use by process {owner}; stop it, or {_CHOOSE_ANOTHER}"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, b"%d\n" % os.getpid(), 0)
    return handle


def is_pending(place: Place) -> bool:
    """Whether a line waits to be written."""
    return place.offset >= PENDING


def _rewritten(line: bytes, runs: Iterable[Run], content: bytes | None) -> Iterator[bytes]:
    """What is left of a line, with what was asked, if it has not said that itself."""
    call = call_of(line)
    content = call[2] if call else content
    key, dialect, samples, raw, _ = parse(line)
    for run in runs:
        some = samples[run.skip : run.skip + run.samples]
        yield encode(key, dialect, content, some, raw, run.slot)
        content, raw = None, b""


def _size(lines: Lines) -> int:
    return sum(len(line) for _, line, _ in lines)


def _without(lines: Lines, is_cleared: IsCleared | None) -> Lines:
    return [one for one in lines if is_cleared and not is_cleared(one[0].key)]


def _try_to(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as e:
        logger.debug("%s", e)
