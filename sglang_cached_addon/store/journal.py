"""The journal: `cache.jsonl`, lines added at the end, and the index of what is in it.

What a line says is in `lines`. One thread owns the file: it writes what has gathered, at the latest
`FLUSH_SECONDS` after it came, whatever else is going on; what a power cut may cost, `fsync` says.
While the disk refuses, `MAX_PENDING` bytes wait, and what comes beyond is not kept; who has much to
store waits for room, so that this is for a disk that fails, not for one that is written to. A clear
of all cuts the file to nothing. What does not count any more is taken out by `rewriting` the file,
which goes on beside all else: when dead lines are most of a large file, and after a clear of some
keys. Broken lines go to `cache.jsonl.broken` then, and those of former formats to `cache.jsonl.v2`
and the like. Somebody may rename, replace, cut or remove the file: it is put right, with a line in
the log. The index of a large file is kept in `cache.index`, and made anew when it is missing or not
of this file. At open, a torn last line is moved to `cache.jsonl.torn`; a broken line elsewhere is
skipped and counted. A lock on the folder keeps a second process out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.settings import FSYNC
from sglang_cached_addon.store.files import (
    CHOOSE_ANOTHER,
    Reader,
    StoreError,
    close_to_others,
    lock,
    private,
    sync_folder,
)
from sglang_cached_addon.store.index import FILE, FILES, PENDING, Head, Index, Place, Run
from sglang_cached_addon.store.lines import (
    OLD_VERSIONS,
    OtherVersion,
    call_of,
    encode,
    is_foreign,
    parse,
    samples_of,
    scan,
)
from sglang_cached_addon.store.rewriting import SLICE, Rewriting
from sglang_cached_addon.store.syncer import Syncer

FLUSH_SECONDS = 0.01
"""How long a line may wait for company."""

RETRY_SECONDS = 1.0
"""Between attempts to write while the disk refuses."""

LOOK_SECONDS = 1.0
"""How often it is looked whether the file is where it was."""

MAX_PENDING = 64 << 20
"""Bytes of lines that may wait for the disk."""

ROOM = 8 << 20
"""While more than that waits for a disk that takes it, who has much to store waits, too."""

PROGRESS_LINES = 20_000
"""How often it is told how much is read."""

INDEX_VERSION = 3

INDEX_BYTES = 64 << 20
"""The index of a smaller file is not kept: reading the file takes no time, and finds damage."""

COMPACT_BYTES = 1 << 20
"""A smaller file is not compacted by itself."""

MANY = 20
"""So many broken lines are reported one by one."""

logger = logging.getLogger(__name__)

IsCleared = Callable[[bytes], bool]
"""Whether the lines of a key are to go."""

Lines = list[tuple[Head, bytes, Place]]
"""Lines that wait, in the order of the file; the number of each stands for its place."""


@dataclass(slots=True)
class Examined:
    """What was found in a file that was only read."""

    entries: int = 0
    samples: int = 0
    """Those that no later line has replaced."""
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


@dataclass(frozen=True, slots=True)
class _Wish:
    """Somebody waits for the file to be without what does not count now."""

    done: Future[None]
    what: str
    """For messages: compact, or clear."""


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
        self._lock_file = lock(folder)
        try:
            close_to_others(folder)
            self._aside.unlink(missing_ok=True)  # of a rewriting that did not come to its end
            self._open()
        except OSError as e:
            os.close(self._lock_file)
            name = e.filename or self.path
            raise StoreError(f"cannot write {name}: {e.strerror}; {CHOOSE_ANOTHER}") from e
        self.index = Index()
        """What is in the file, or waits to be. Changed under the lock."""
        self._others = 0
        """Bytes of lines of later versions."""
        self._compact_above = COMPACT_BYTES
        self._lines = 0
        """In the file."""
        self._indexed = 0
        """Bytes of the file that the kept index is of."""
        self.restoring: Callable[[], object] = lambda: None
        """Called before a file is put back that was removed, with its folder perhaps."""
        self.turn = 0
        """Rises when somebody has cut the file, so that what was read of it may be no more."""
        self._serial = 0
        self._waiting: dict[int, bytes] = {}
        """Lines that are not written yet, by their places."""
        self._pending: Lines = []
        self._pending_bytes = 0
        self._room: list[Future[None]] = []
        self._clears: list[Future[None]] = []
        """Of all."""
        self._wishes: list[_Wish] = []
        self.dropped = 0
        """Samples that were not kept, because too much was waiting for the disk."""
        self.lost = 0
        """Samples that were kept, and could not be written before the end."""
        self._dropping = False
        self._failure: OSError | None = None
        """Why the disk has refused what was written last."""
        self._syncer = Syncer(self.path) if fsync == "interval" else None
        self._cannot_sync = self._cannot_read = self._cannot_restore = False
        self._changed = threading.Condition()
        self._closing = False
        self._taken: Lines = []
        """Lines that the writer has, and not yet written."""
        self._writing_bytes = 0
        self._looked_at = 0.0
        self._is_astray = False
        """The path does not name the file, which is to be written anew there."""
        self._rewriting: Rewriting | None = None
        self._is_named = False
        """The rewritten file has its name, and the index is being told where all has gone."""
        self._is_whole = True
        """The index says of all where it is."""
        self._granted: list[_Wish] = []
        """What comes true with it."""
        self._thread: threading.Thread | None = None

    def _open(self) -> None:
        self._file = open(self.path, "ab", buffering=0, opener=private)  # noqa: SIM115
        self.size = os.fstat(self._file.fileno()).st_size
        """Bytes of the file, whose lines the index all knows."""
        self._number = 0
        """Of the file: places in it begin with that."""
        self._readers = {0: Reader(self.path)}
        """By the numbers of files in which lines may be."""

    # On the event loop: nothing here waits for the disk.

    @property
    def pending(self) -> int:
        """Lines that are not yet written."""
        return len(self._pending) + len(self._taken)

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
                self._waiting[place.offset] = line
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

    def room(self) -> Future[None] | None:
        """Done when there is room for more; None if there is, or if the disk refuses, so that
        waiting would be for nothing."""
        with self._changed:
            if self.pending_bytes <= ROOM or self._failure or self._closing:
                return None
            room: Future[None] = Future()
            self._room.append(room)
        return room

    def has_room(self, size: int) -> bool:
        """Whether so many bytes could be kept: of a disk that refuses, nothing is to be hoped."""
        return not self._failure or self.pending_bytes + size <= MAX_PENDING

    def read(self, key: bytes, *, waits: bool) -> list[Sample] | None:
        """The samples of a key. None if the disk would have to be waited for and is not to be. What
        is broken is reported, and found no more."""
        with self._changed:
            runs = self.index.runs(key)
            found = [(run, *self._source(run.place)) for run in runs]
        samples: list[Sample] = []
        for run, line, reader in found:
            try:
                if reader:
                    line = reader.read(run.place.offset % FILE, run.place.length, waits=waits)
                if line is None:
                    return None
                samples += samples_of(line, key)[run.skip : run.skip + run.samples]
            except OSError as e:
                if not self._cannot_read:  # each look would say it again
                    logger.warning("cannot read %s: %s", self.path, e.strerror)
                self._cannot_read = True
                return None
            except (OtherVersion, ValueError, KeyError, TypeError) as e:
                self._lose(key, run.place, e)
        return samples

    def _source(self, place: Place) -> tuple[bytes | None, Reader | None]:
        """A line that waits to be written, or what reads the others."""
        if place.offset >= PENDING:
            return self._waiting.get(place.offset), None
        return None, self._readers.get(place.offset // FILE)

    def _lose(self, key: bytes, place: Place, why: Exception) -> None:
        with self._changed:
            if not self.index.runs_of(key, place):
                return  # it has gone elsewhere meanwhile
            self.index.lose(key, place)
        # Which line it is, nobody has counted.
        at = place.offset % FILE
        logger.warning("%s: the line at byte %d is not used: %s", self.path, at, why)

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
        """Begins to rewrite the file without dead and broken lines; what was queued before is in
        it, where the disk takes it."""
        return self._wish("compact")

    def clear(self, is_cleared: IsCleared | None = None) -> Future[None]:
        """Queues the removal of some keys' lines, or of the whole file's; what was pending of them
        goes with it."""
        with self._changed:
            self.index.clear(is_cleared)
            self._drop_pending(lambda head, place: is_cleared is None or is_cleared(head.key))
            if is_cleared:
                return self._wish("clear")
            done: Future[None] = Future()
            self._clears.append(done)
            self._changed.notify()
        return done

    def _drop_pending(self, is_dropped: Callable[[Head, Place], object]) -> None:
        kept = []
        for one in self._pending:
            if is_dropped(one[0], one[2]):
                self._waiting.pop(one[2].offset, None)
            else:
                kept.append(one)
        self._pending, self._pending_bytes = kept, sum(len(line) for _, line, _ in kept)

    def _wish(self, what: str) -> Future[None]:
        done: Future[None] = Future()
        with self._changed:
            self._wishes.append(_Wish(done, what))
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
            self._set_original_aside()
            loaded = self._load(progress)
            self._keep_index()
        except OSError as e:
            raise StoreError(f"cannot read {self.path}: {e.strerror}; {CHOOSE_ANOTHER}") from e
        self._looked_at = time.monotonic()
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()
        return loaded

    def _set_original_aside(self) -> None:
        """A file of the original sglang-cached has this name as well, and other things in it."""
        with open(self.path, "rb", buffering=1 << 20) as lines:
            count = 0
            for line in lines:
                if not is_foreign(line) and (line.endswith(b"\n") or not count):
                    return
                count += 1
        if not count:
            return
        aside = self.path.with_name(f"{self.path.name}.original")
        if aside.exists():
            aside = aside.with_name(f"{aside.name}.{time.time_ns()}")
        self.path.replace(aside)
        self._file.close()
        self._open()
        logger.warning(
            "%s: was written by another program, as the original sglang-cached (%d lines), and is "
            "of no use here; it is in %s now",
            self.path,
            count,
            aside.name,
        )

    def _load(self, progress: Callable[[float], object]) -> Loaded:
        torn = self._set_torn_line_aside()
        skipped = old = 0
        size = max(1, self.size)
        before, offset = self._load_index()
        number, first = before, self._number * FILE
        with open(self.path, "rb", buffering=1 << 20) as lines:
            lines.seek(offset)
            for number, line in enumerate(lines, before + 1):
                if number % PROGRESS_LINES == 0:
                    progress(offset / size)
                place, offset = Place(first + offset, len(line)), offset + len(line)
                try:
                    self.index.add(scan(line), place)
                except OtherVersion as e:
                    if e.version in OLD_VERSIONS:
                        old += 1
                        continue
                    self._others += len(line)
                    skipped += 1
                    self._skip(skipped, number, e)
                except (ValueError, KeyError, TypeError) as e:
                    skipped += 1
                    self._skip(skipped, number, e)
        if skipped > MANY:
            logger.warning("%s: %d lines skipped in all", self.path, skipped)
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

    def _skip(self, count: int, number: int, why: Exception) -> None:
        if count <= MANY:
            logger.warning("%s:%d: line skipped: %s", self.path, number, why)

    def _load_index(self) -> tuple[int, int]:
        """Takes the index that was kept; how many lines and bytes of the file it is of."""
        try:
            with open(self._index_path, "rb") as file:
                head, data = orjson.loads(file.readline()), file.read()
            lines, size, number = int(head["lines"]), int(head["bytes"]), int(head["number"])
            if head["v"] != INDEX_VERSION or head["sum"] != zlib.crc32(data):
                raise ValueError("damaged, or of another version")
            if not 0 <= number < FILES or head["tail"] != self._tail(size):
                raise ValueError("not of this file")
            self.index, self._others = Index.load(data), int(head["others"])
        except FileNotFoundError:
            return 0, 0
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            logger.info("%s: %s; made anew", self._index_path, e)
            return 0, 0
        self._indexed = size
        self._readers, self._number = {number: self._readers[self._number]}, number
        return lines, size

    def _tail(self, size: int) -> str:
        """The end of the first so many bytes of the file, which tells it from others."""
        with open(self.path, "rb") as file:
            file.seek(max(0, size - 64))
            return file.read(min(size, 64)).hex()

    def _keep_index(self) -> None:
        """Writes the index down, if the file is large and has grown: before and after serving, when
        nobody waits. Nothing waits to be written; what fails costs no more than time."""
        if self.size < INDEX_BYTES or self.size == self._indexed or self._pending:
            return
        pieces, checksum = [], 0
        for piece in self.index.dump():
            pieces.append(piece)
            checksum = zlib.crc32(piece, checksum)
        aside = self._index_path.with_suffix(".index.new")
        head = {
            "v": INDEX_VERSION,
            "sum": checksum,
            "lines": self._lines,
            "bytes": self.size,
            "number": self._number,
            "others": self._others,
            "tail": self._tail(self.size),
        }
        try:
            with open(aside, "wb", opener=private) as file:
                file.writelines([orjson.dumps(head) + b"\n", *pieces])
            aside.replace(self._index_path)
            self._indexed = self.size
        except OSError as e:
            logger.debug("%s", e)
            _try_to(lambda: aside.unlink(missing_ok=True))

    def close(self) -> None:
        """Writes what is pending, syncs, and gives the folder free; `lost` says what could not be
        written. A rewriting is given up, as it would take as long as the file is large. May be
        called twice."""
        if self._file.closed:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
        if self._syncer:
            self._syncer.close()
        self._sync()
        if self._thread and self._is_whole:
            with suppress(OSError):
                self._keep_index()
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
                with open(self.path.with_suffix(".jsonl.torn"), "ab", opener=private) as aside:
                    aside.write(torn + b"\n")
                    aside.flush()
                    os.fsync(aside.fileno())
                journal.truncate(end - len(torn))
                logger.warning("%s: torn last line (%d bytes) set aside", self.path, len(torn))
        self.size = end - len(torn)
        return len(torn)

    # In the writer's thread.

    def _write(self) -> None:
        while True:
            try:
                if not self._step():
                    return
            except Exception:  # a thread that ends in silence would lose all that follows
                logger.exception("%s: lines lost", self.path)

    def _step(self) -> bool:
        """Waits for work and does it; False at the end."""
        self._wait()
        with self._changed:
            clears, self._clears = self._clears, []
            lines, self._pending = self._pending, []
            self._taken, self._writing_bytes = lines, self._pending_bytes
            self._pending_bytes = 0
            is_closing = self._closing
        if clears:
            self._clear_all(clears)
        if lines:
            self._append_all(lines)
        now = time.monotonic()
        if is_closing or now >= self._looked_at + LOOK_SECONDS:
            self._looked_at = now
            self._look()
        self._see_to_rewriting(is_closing=is_closing)
        with self._changed:
            self._taken, self._writing_bytes = [], 0
            self._give_room()
            if not (is_closing and not self._clears and (self._failure or not self._pending)):
                return True
            self.lost = sum(head.samples for head, _, _ in self._pending)
        if self.lost:
            logger.warning(
                "%s: %d samples could not be written and are lost: %s",
                self.path,
                self.lost,
                self._failure and (self._failure.strerror or self._failure),
            )
        return False

    def _wait(self) -> None:
        """Returns when there is something to do: at the latest when it is time to look."""
        with self._changed:
            while not self._is_urgent():
                if self._pending and not self._failure:
                    self._changed.wait_for(self._is_urgent, FLUSH_SECONDS)
                    return
                if not self._changed.wait(RETRY_SECONDS if self._pending else LOOK_SECONDS):
                    return

    def _is_urgent(self) -> bool:
        rewriting = self._rewriting
        if rewriting is None:
            return bool(self._closing or self._clears or self._wishes)
        return bool(
            self._closing
            or self._clears
            or rewriting.is_done
            or (not self._is_named and (rewriting.is_ready or self._is_clear_wished()))
        )

    def _is_clear_wished(self) -> bool:
        return any(wish.what == "clear" for wish in self._wishes)

    def _give_room(self) -> None:
        """Tells who waits for room."""
        if self.pending_bytes <= ROOM or self._failure or self._closing:
            for room in self._room:
                if room.set_running_or_notify_cancel():
                    room.set_result(None)
            self._room.clear()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
            self._cannot_sync = False
        except OSError as e:
            if not self._cannot_sync:
                logger.warning("cannot sync %s: %s; trying on", self.path, e.strerror)
            self._cannot_sync = True

    def _append_all(self, lines: Lines) -> None:
        """Writes them as one run of whole lines. If the disk refuses, they go back to where they
        were, but for what was cleared meanwhile."""
        data = memoryview(b"".join(line for _, line, _ in lines))
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
            end = self._file.tell()
        except OSError as e:
            if written:
                _try_to(lambda: self._file.truncate(self.size))
            self._put_back(lines, e)
            return
        if end - len(data) < self.size:
            self._was_cut(end - len(data))
        self._put_all(lines, end - len(data))
        self.size = end
        self._lines += len(lines)
        if self._syncer:
            self._syncer.note(self._file.fileno())
        elif self.fsync == "always":
            self._sync()
        with self._changed:
            ends, self._dropping = self._dropping, False
            self._failure = None
        if ends:
            logger.warning(
                "%s: the disk keeps up again; %d samples in all were not kept",
                self.path,
                self.dropped,
            )

    def _put_back(self, lines: Lines, why: OSError) -> None:
        if self._failure is None:
            logger.warning("cannot write %s: %s; trying on", self.path, why.strerror or why)
        with self._changed:
            self._failure = why
            self._pending = lines + self._pending
            self._pending_bytes += self._writing_bytes
            self._taken, self._writing_bytes = [], 0
            # What was cleared meanwhile is not to come to the disk after all.
            self._drop_pending(lambda head, place: head.samples and not self.runs(head.key, place))

    def _put_all(self, lines: Lines, offset: int) -> None:
        """Notes where lines have come to be."""
        offset += self._number * FILE
        for start in range(0, len(lines), SLICE):
            with self._changed:  # not for long: the event loop wants it, too
                for head, line, place in lines[start : start + SLICE]:
                    self.index.put(head.key, place, offset)
                    self._waiting.pop(place.offset, None)
                    offset += len(line)

    def _clear_all(self, clears: list[Future[None]]) -> None:
        """Cuts the file to nothing: one operation, so there is no half of it."""
        failure = None
        self._give_up()
        try:
            self._drop_index()
            self._file.truncate(0)
            os.fsync(self._file.fileno())
        except Exception as e:  # whoever waits for this must be told, whatever it is
            failure = self._cannot("clear", e)
        else:
            with self._changed:
                # Places of before are of another file.
                number = (self._number + 1) % FILES
                self._readers, self._number = {number: self._readers[self._number]}, number
                self._others = self._lines = self.size = 0
                self._is_whole = True
                # Cleared as well.
                wishes = [wish for wish in self._wishes if wish.what == "clear"]
                self._wishes = [wish for wish in self._wishes if wish.what != "clear"]
            clears = [*clears, *(wish.done for wish in wishes)]
        _tell(clears, failure)

    def _cannot(self, what: str, why: Exception) -> StoreError:
        reason = why.strerror or why if isinstance(why, OSError) else repr(why)
        return StoreError(f"cannot {what} {self.path}: {reason}")

    # The file, and what others do to it.

    def _look(self) -> None:
        """Sees to it that the path names the file, and that all of it is there."""
        try:
            ours = os.fstat(self._file.fileno())
            if ours.st_size < self.size:
                self._was_cut(ours.st_size)
            with suppress(FileNotFoundError):
                there = self.path.stat()
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    self._is_astray = self._cannot_restore = False
                    return
            if not self._is_astray:
                self._put_right(ours)
        except OSError as e:
            if not self._cannot_restore:
                logger.warning(
                    "%s: was renamed or removed, and cannot be put back: %s; trying on",
                    self.path,
                    e.strerror or e,
                )
            self._cannot_restore = True

    def _put_right(self, ours: os.stat_result) -> None:
        """What is in the file is served, and would be gone with this process, or be another's."""
        if not self.folder.is_dir() or not os.fstat(self._lock_file).st_nlink:
            held = lock(self.folder)  # a new file, unless that is somebody else's by now
            os.close(self._lock_file)
            self._lock_file = held
        self.restoring()  # first: without it, answers might be taken for another model's
        if self.path.exists() and self.path.stat().st_size:
            theirs = self.path.with_name(f"{self.path.name}.other")
            self.path.replace(theirs)
            logger.warning("%s: another file was put in its place; it is in %s", self.path, theirs)
        if not ours.st_nlink or not self._link():
            self._is_astray = True  # nothing has it by a name: it is written anew
            return
        logger.warning(
            "%s: was renamed; it has its name again, with all that was stored. It needs no "
            "rotation: see --max-bytes",
            self.path,
        )

    def _link(self) -> bool:
        """Gives the file its name again, whatever others it has; False if this system cannot."""
        ours = f"/proc/self/fd/{self._file.fileno()}"
        try:
            self._aside.unlink(missing_ok=True)
            folder = os.open(self.folder, os.O_RDONLY)
            try:  # without a folder's descriptor, what is linked is the link itself
                os.link(ours, self._aside.name, dst_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
            self._aside.replace(self.path)
            sync_folder(self.folder)
        except OSError as e:
            logger.debug("%s: %s", self.path, e)
            return False
        return True

    def _was_cut(self, size: int) -> None:
        """Somebody has taken away what was in the file."""
        self._give_up()
        with self._changed:
            before, self.index = self.index, Index()
            for head, _, place in (*self._taken, *self._pending):
                self.index.add(head, place)
            lost = before.samples - self.index.samples
            number = (self._number + 1) % FILES
            self._readers, self._number = {number: self._readers[self._number]}, number
            self._others = self._lines = 0
            self.size = size
            self.turn += 1
        self._drop_index()
        logger.warning(
            "%s: was cut by somebody (logrotate with copytruncate?); %d samples that were in it "
            "are lost. It needs no rotation: see --max-bytes",
            self.path,
            lost,
        )

    def _drop_index(self) -> None:
        self._indexed = 0
        self._index_path.unlink(missing_ok=True)

    # Rewriting

    def _is_mostly_dead(self) -> bool:
        with self._changed:
            live = self.index.bytes - self.pending_bytes + self._others
        return self.size > self._compact_above and live * 2 < self.size

    def _see_to_rewriting(self, *, is_closing: bool) -> None:
        rewriting = self._rewriting
        if is_closing:
            self._give_up()
            with self._changed:
                wishes, self._wishes = self._wishes, []
            _tell([wish.done for wish in wishes], self._cannot("rewrite", OSError("it ends")))
        elif rewriting is None:
            self._begin()
        elif rewriting.is_done:
            self._end(rewriting)
        elif self._is_clear_wished() and not self._is_named:
            self._give_up()  # what has been copied may have been cleared since
            self._begin()
        elif rewriting.is_ready and not self._is_named:
            try:
                self._name(rewriting)
            except OSError as e:
                rewriting.failure = e
                rewriting.give_up()
                rewriting.join()
                self._end(rewriting)

    def _begin(self) -> None:
        with self._changed:
            wishes = self._wishes
        if not (wishes or self._is_astray or self._is_mostly_dead()):
            return
        # What was queued before is written first, where the disk takes it.
        with self._changed:
            self._granted, self._wishes = self._wishes, []
        reader = self._readers[self._number]
        try:
            self._rewriting = Rewriting(self, reader, self._number, self.path)
        except OSError as e:
            self._fail(e)

    def _name(self, rewriting: Rewriting) -> None:
        """Puts the rewritten file in the place of this one. Raises OSError."""
        rewriting.finish(syncs=self.fsync == "always")
        # Opened before it has its name: behind the renaming nothing may fail that would leave us
        # with a file that is gone.
        file = open(self._aside, "ab", buffering=0, opener=private)  # noqa: SIM115
        try:
            reader = Reader(self._aside)
            self._drop_index()
            self._aside.replace(self.path)
        except BaseException:
            file.close()
            raise
        self._file, old = file, self._file
        old.close()
        number = (self._number + 1) % FILES
        with self._changed:
            self._readers[number] = reader
            self._number, self.size = number, rewriting.size
            self._lines, self._others = rewriting.lines, rewriting.others
        self._is_named = True
        rewriting.named(number)
        if self._is_astray:
            self._is_astray = False
            logger.warning("%s: was removed; written anew", self.path)
        if self._syncer:
            self._syncer.note(self._file.fileno())

    def _end(self, rewriting: Rewriting) -> None:
        """It is done, or has failed."""
        with self._changed:
            if self._is_named:
                self._readers = {self._number: self._readers[self._number]}
            granted, self._granted = self._granted, []
            self._is_named, self._rewriting = False, None
        if rewriting.failure:
            self._granted = granted
            self._fail(rewriting.failure)
            return
        self._compact_above = COMPACT_BYTES
        _tell([wish.done for wish in granted], None)

    def _fail(self, why: Exception) -> None:
        _try_to(lambda: self._aside.unlink(missing_ok=True))
        granted, self._granted = self._granted, []
        if not self._is_astray:
            logger.warning("%s", self._cannot("compact", why))
        elif not self._cannot_restore:
            self._cannot_restore = True
            logger.warning("%s", self._cannot("write anew what was in", why))
        for wish in granted:
            _tell([wish.done], self._cannot(wish.what, why))
        # Not to be tried again with every line.
        self._compact_above = max(COMPACT_BYTES, self.size * 5 // 4)
        self._is_astray = False

    def _give_up(self) -> None:
        """A rewriting that is under way is no more, as all is to be cleared, or it is the end; what
        was wished for is wished for still."""
        rewriting = self._rewriting
        if rewriting is None:
            return
        rewriting.give_up()
        if self._is_named:  # it has happened; to where all has gone is of no interest any more
            self._is_whole = rewriting.is_done
            rewriting.join()
            self._end(rewriting)
            return
        _try_to(lambda: self._aside.unlink(missing_ok=True))
        with self._changed:
            self._wishes = self._granted + self._wishes
            self._granted, self._rewriting = [], None

    # For the thread that rewrites: see `rewriting.Owner`.

    def runs(self, key: bytes, place: Place) -> list[Run]:
        with self._changed:
            return self.index.runs_of(key, place)

    def move(self, moves: Iterable[tuple[bytes, int, int, int, Place]]) -> None:
        with self._changed:
            for key, old, slot, count, place in moves:
                self.index.move(key, old, slot, count, place)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify()


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


def _tell(waiting: Iterable[Future[None]], failure: Exception | None) -> None:
    for done in waiting:
        if not done.set_running_or_notify_cancel():
            continue  # nobody waits for it any more
        if failure:
            done.set_exception(failure)
        else:
            done.set_result(None)


def _try_to(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as e:
        logger.debug("%s", e)
