"""The journal: `cache.jsonl`, one self-describing JSON object a line, added at the end.

    {"v":2,"key":"<64 hex>","raw":"<32 hex>","since":<unix s>,"dialect":"...","at":<unix s>,
     "seconds":<s>,"tokens":[..],"deltas":[..],"call":{..},"answers":[{..},..],
     "sum":"<8 hex>"}

`answers` are samples, each the whole answer of its API for n=1; `deltas`, where they came as
streams, holds the boundaries of each one's events, or null; `call` is what was asked, on the
first line of a key; `raw` names a body that the first answer of the key answers; `since`, if
any, says that samples of the key stored before that are no more; `sum`
is the CRC-32 of the line's bytes before `,"sum":`, so that a damaged line is never taken for
another one. One thread owns the file: it writes what has gathered, at the latest
`FLUSH_SECONDS` after it came, so a killed process loses no more than that; what a power cut may
cost, `fsync` says. While the disk does not keep up, `MAX_PENDING` bytes wait, and what comes
beyond is not kept. A clear of all cuts the file to nothing; one
of some keys takes all of their lines out, and no other: what is left of them is written to
`cache.jsonl.new` and renamed, so there is no half of it. At open, a torn last line is moved to
`cache.jsonl.torn`; a broken line elsewhere, or one of another format version, is skipped
and counted. Compacting takes out the samples that a later `since` has dropped, and moves broken
lines to `cache.jsonl.broken`; it happens by itself when dead samples are most of a large file.
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
from typing import Any, Protocol

import orjson

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.keys import FORMAT_VERSION, dumps
from sglang_cached_addon.store.state import StoreError, sync_folder

FLUSH_SECONDS = 0.05
"""How long a line may wait for company."""

RETRY_SECONDS = 1.0
"""Between attempts to write while the disk refuses."""

SYNC_SECONDS = 1.0
"""How long what is written may be lost to a power cut, with `fsync="interval"`."""

FSYNC = ("always", "interval", "never")
"""When what is written is made to outlive a power cut: before the next is written, at the latest
`SYNC_SECONDS` later, or only at the end."""

MAX_PENDING = 64 << 20
"""Bytes of lines that may wait for the disk."""

COMPACT_BYTES = 1 << 20
"""A smaller file is not compacted by itself."""

logger = logging.getLogger(__name__)

OLD_VERSIONS = (1,)
"""Lines of these are kept, and of no use: the first did not name the model."""


class Add(Protocol):
    """Takes what a line holds."""

    def __call__(
        self,
        key: bytes,
        dialect: str,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float | None = None,
    ) -> object: ...


IsCleared = Callable[[bytes], bool]
"""Whether the lines of a key are to go."""

Clear = tuple[Future[None], IsCleared | None]
"""What is done when the disk has it, and whose lines go: everybody's, if it does not say."""

Lines = list[tuple[bytes, bytes]]
"""Keys and lines, in the order of the file."""


Select = Callable[[Iterable[bytes]], Iterable[bytes]]
"""From the lines of a file to those of the one that takes its place."""

Parsed = tuple[bytes, str, list[Sample], bytes, float | None]
"""Key, dialect, samples, name of a raw body, and `since` of a line."""


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
        self._lock_file = _lock(folder)
        try:
            self._aside.unlink(missing_ok=True)  # of a rewriting that did not come to its end
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        except OSError as e:
            os.close(self._lock_file)
            name = e.filename or self.path
            raise StoreError(f"cannot write {name}: {e.strerror}; {_CHOOSE_ANOTHER}") from e
        self._pending: Lines = []
        self._pending_bytes = 0
        self._clears: list[Clear] = []
        self._compactions: list[Future[None]] = []
        self.dropped = 0
        """Samples that were not kept, because too much was waiting for the disk."""
        self._dropping = False
        self._dead = 0
        """About how many bytes of the file are of samples that are no more."""
        self._unsynced: float | None = None
        """Since when something is written and not synced."""
        self._cannot_sync = False
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        """Set when the writer should not wait: for a clear, and at the end."""
        self._closing = False
        self._writing = self._writing_bytes = 0
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
        *,
        since: float | None = None,
    ) -> bool:
        """Queues one line; `content` is the canonical call, or None if the journal has it. False if
        too much is waiting already: the line is not kept, then."""
        line = encode(key, dialect, content, samples, raw, since)
        with self._changed:
            if fits := self.pending_bytes + len(line) <= MAX_PENDING:
                self._pending.append((key, line))
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

    def died(self, count: int) -> None:
        """Notes that so many bytes of answers, which it has or will have, are no more."""
        with self._changed:
            self._dead += count

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
        deadline = time.monotonic() + seconds
        try:
            # Opened anew, so that the writer's place in the file is its own. What a clear takes
            # away meanwhile may still be seen.
            with open(self.path, "rb") as lines:
                for line in lines:
                    if limit <= 0 or time.monotonic() > deadline:
                        return
                    if (found := _call_of(line)) is not None:
                        limit -= 1
                        yield found
        except OSError as e:
            logger.debug("%s", e)

    # Before serving, and after.

    def load(self, add: Add) -> Loaded:
        """Reads every line into `add(key, dialect, samples, raw)`, then starts the writer.

        Raises `StoreError` where the disk fails; a broken line is no such failure.
        """
        try:
            loaded = self._load(add)
        except OSError as e:
            raise StoreError(f"cannot read {self.path}: {e.strerror}; {_CHOOSE_ANOTHER}") from e
        if self._is_mostly_dead():
            self.compact()
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()
        return loaded

    def _load(self, add: Add) -> Loaded:
        torn = self._set_torn_line_aside()
        keys: set[bytes] = set()
        samples = skipped = old = 0
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    key, dialect, found, raw, since = _parse(line)
                except _OtherVersion as e:
                    if e.version in OLD_VERSIONS:
                        old += 1
                    else:
                        skipped += 1
                        logger.warning("%s:%d: line skipped: %s", self.path, number, e)
                    continue
                except (ValueError, KeyError, TypeError) as e:
                    skipped += 1
                    logger.warning("%s:%d: line skipped: %s", self.path, number, e)
                    continue
                add(key, dialect, found, raw, since=since)
                keys.add(key)
                samples += len(found)
        if old:
            logger.warning(
                "%s: lines of an older version, which did not note the model, are not used (%d); "
                "only a clear of all (POST /cache/clear) removes them",
                self.path,
                old,
            )
        return Loaded(len(keys), samples, skipped + old, torn)

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
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            logger.warning("cannot sync %s: %s", self.path, e.strerror)
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
                due = self._seconds_to_sync()
                if due is not None and due <= 0:
                    break
                self._changed.wait(due)
            is_idle = not self._has_work()
        if is_idle:
            self._sync()
            return True
        self._hurry.wait(FLUSH_SECONDS)
        with self._changed:
            clears, self._clears = self._clears, []
            compactions, self._compactions = self._compactions, []
            lines, self._pending = self._pending, []
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
        with self._changed:
            self._writing = self._writing_bytes = 0
            return not self._is_done()

    def _has_work(self) -> bool:
        return bool(self._pending or self._clears or self._compactions or self._closing)

    def _is_done(self) -> bool:
        return self._closing and not (self._pending or self._clears or self._compactions)

    def _seconds_to_sync(self) -> float | None:
        """Until what is written has to be synced; None if it need not."""
        if self._unsynced is None or self.fsync != "interval":
            return None
        # A line that comes just before may hold it up for as long as it waits for company.
        return self._unsynced + SYNC_SECONDS - FLUSH_SECONDS - time.monotonic()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            if not self._cannot_sync:
                logger.warning("cannot sync %s: %s; trying on", self.path, e.strerror)
            self._unsynced, self._cannot_sync = time.monotonic(), True
        else:
            self._unsynced, self._cannot_sync = None, False

    def _sync_if_due(self) -> None:
        due = self._seconds_to_sync()
        if due is not None and due <= 0:
            self._sync()

    def _append_all(self, lines: Lines, *, is_patient: bool) -> None:
        """Writes them as one run of whole lines, waiting while the disk refuses; if it is not to
        wait, they go back to where they were."""
        data = memoryview(b"".join(line for _, line in lines))
        start, warned = os.fstat(self._file.fileno()).st_size, False
        while True:
            try:
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
                break
            except OSError as e:
                _try_to(lambda: self._file.truncate(start))
                if not warned:
                    logger.warning("cannot write %s: %s; trying on", self.path, e.strerror)
                    warned = True
            self._sync_if_due()
            if not is_patient or self._hurry.wait(RETRY_SECONDS):
                with self._changed:
                    for _, is_cleared in self._clears:
                        lines = _without(lines, is_cleared)
                    if self._clears or self._compactions or not is_patient:
                        # Clears go first; what they leave of these is still before what came since.
                        self._pending, self._writing = lines + self._pending, 0
                        self._pending_bytes, self._writing_bytes = _size(self._pending), 0
                        return
                logger.warning("%s: %d bytes could not be written", self.path, len(data))
                return  # the end has come
        if self._unsynced is None:
            self._unsynced = time.monotonic()
        if self.fsync == "always":
            self._sync()
        else:
            self._sync_if_due()
        with self._changed:
            ends, self._dropping = self._dropping, False
        if ends:
            logger.warning(
                "%s: the disk keeps up again; %d samples in all were not kept",
                self.path,
                self.dropped,
            )

    def _clear_all(self, clears: list[Clear]) -> None:
        for done, is_cleared in clears:
            failure = None
            try:
                if is_cleared:
                    self._rewrite(is_cleared)
                else:
                    # Cut to nothing: one operation, so there is no half of it.
                    self._file.truncate(0)
                    os.fsync(self._file.fileno())
                    self._unsynced, self._dead = None, 0
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
                key = _key_of(line)
                if key is None or not is_cleared(key):
                    yield line

        self._replace(select)

    def _is_mostly_dead(self) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        return size > COMPACT_BYTES and self._dead * 2 > size

    def _compact_all(self, waiting: list[Future[None]]) -> None:
        failure = None
        dead = self._dead
        try:
            self._replace(self._living)
        except Exception as e:  # as in a clear
            reason = e.strerror if isinstance(e, OSError) else repr(e)
            failure = StoreError(f"cannot compact {self.path}: {reason}")
            logger.warning("%s", failure)
        with self._changed:
            # After a failure, too: not to be tried again with every line.
            self._dead = max(0, self._dead - dead)
        for done in waiting:
            if not done.set_running_or_notify_cancel():
                continue
            if failure:
                done.set_exception(failure)
            else:
                done.set_result(None)

    def _living(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Without what a later `since` drops. All samples of a line were stored at one time, so
        they go together."""
        drops = _drops(self.path)
        # What was asked, and the name of a body: of dead lines, for the next of the key.
        orphans: dict[bytes, tuple[bytes | None, bytes]] = {}
        for number, line, found in self._unbroken(lines):
            if found is None or found[0] not in drops:
                yield line
                continue
            key, dialect, samples, raw, since = found
            later = drops[key]
            while later and later[-1][0] <= number:
                later.pop()
            call = _call_of(line)
            content = call[2] if call else None
            old_content, old_raw = orphans.pop(key, (None, b""))
            content, raw = content or old_content, raw or old_raw
            if later and samples[0].stored_at < later[-1][1]:
                orphans[key] = content, raw
            elif since is None and old_content is None and not old_raw:
                yield line
            else:  # nothing is left for its `since` to drop
                yield encode(key, dialect, content, samples, raw)

    def _unbroken(self, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, Parsed | None]]:
        """Lines with their numbers and what is in them, nothing for those of other versions; the
        broken ones are on the disk in `cache.jsonl.broken` when all are taken."""
        with ExitStack() as stack:
            aside = None
            for number, line in enumerate(lines, 1):
                if number % 16 == 0:
                    time.sleep(0)  # lets the event loop have its turn
                found = None
                try:
                    found = _parse(line)
                except _OtherVersion:
                    pass
                except (ValueError, KeyError, TypeError):
                    if aside is None:
                        name = self.path.with_suffix(".jsonl.broken")
                        aside = stack.enter_context(open(name, "ab"))
                        mode = os.fstat(self._file.fileno()).st_mode & 0o7777
                        os.fchmod(aside.fileno(), mode)
                    aside.write(line.removesuffix(b"\n") + b"\n")
                    continue
                yield number, line, found
            if aside:
                aside.flush()
                os.fsync(aside.fileno())

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
        try:
            with open(self.path, "rb") as lines, open(self._aside, "wb") as kept:
                # Who may not read the answers now may not read them afterwards.
                os.fchmod(kept.fileno(), os.fstat(lines.fileno()).st_mode & 0o7777)
                for line in select(lines):
                    kept.write(line)
                kept.flush()
                os.fsync(kept.fileno())
            # Opened before it has its name: behind the renaming nothing may fail that would leave
            # us with a file that is gone.
            file = open(self._aside, "ab", buffering=0)  # noqa: SIM115
            self._aside.replace(self.path)
        except BaseException:
            if file:
                file.close()
            _try_to(lambda: self._aside.unlink(missing_ok=True))
            raise
        self._file, old = file, self._file
        old.close()
        self._unsynced = None
        # If this fails the lines are gone, but might be back after a power cut: not to be promised.
        sync_folder(self.folder)


def examine(path: Path, tell: Callable[[int, str], None]) -> Examined:
    """Reads a journal without taking its folder; `tell` gets the number of each broken line, and
    why. A torn last line is none of them."""
    found = Examined()
    stored: dict[bytes, list[float]] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            found.bytes += len(line)
            if not line.endswith(b"\n"):
                found.torn = len(line)
                break
            try:
                key, _, samples, _, since = _parse(line)
            except _OtherVersion:
                found.others += 1
                continue
            except (ValueError, KeyError, TypeError) as e:
                found.broken += 1
                tell(number, str(e))
                continue
            pool = stored.setdefault(key, [])
            if since is not None:
                pool[:] = [at for at in pool if at >= since]
            pool += [sample.stored_at for sample in samples]
    found.entries = len(stored)
    found.samples = sum(map(len, stored.values()))
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


def encode(
    key: bytes,
    dialect: str,
    content: bytes | None,
    samples: Sequence[Sample],
    raw: bytes = b"",
    since: float | None = None,
) -> bytes:
    """A line of the journal, with its newline."""
    record: dict[str, Any] = {
        "v": FORMAT_VERSION,
        "key": key.hex(),
        **({"raw": raw.hex()} if raw else {}),
        **({"since": since} if since is not None else {}),
        "dialect": dialect,
        "at": samples[0].stored_at,
        "seconds": samples[0].seconds,
        "tokens": [sample.tokens for sample in samples],
    }
    if any(sample.deltas for sample in samples):
        record["deltas"] = [orjson.Fragment(sample.deltas or b"null") for sample in samples]
    if content is not None:
        record["call"] = orjson.Fragment(content)
    record["answers"] = [orjson.Fragment(sample.answer) for sample in samples]
    return seal(orjson.dumps(record))


def seal(record: bytes) -> bytes:
    """A line, with its newline, of a JSON object that lacks only the sum."""
    body = record[:-1]
    return b'%b,"sum":"%08x"}\n' % (body, zlib.crc32(body))


class _OtherVersion(Exception):
    """A whole line of a version that was, or will be."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format version {version}")
        self.version = version


def _is_sealed(line: bytes) -> bool:
    """Whether the sum is there and right."""
    return line[-19:] == b',"sum":"%08x"}\n' % zlib.crc32(memoryview(line)[:-19])


def _size(lines: Lines) -> int:
    return sum(len(line) for _, line in lines)


def _drops(path: Path) -> dict[bytes, list[tuple[int, float]]]:
    """By key, the lines with a `since`, last first: the number of each, and the latest `since` of
    it and those behind it."""
    found: dict[bytes, list[tuple[int, float]]] = {}
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if b'"since":' not in line:
                continue
            try:
                key, _, _, _, since = _parse(line)
            except (_OtherVersion, ValueError, KeyError, TypeError):
                continue
            if since is not None:
                found.setdefault(key, []).append((number, since))
    for marks in found.values():
        marks.reverse()
        for place in range(1, len(marks)):
            number, since = marks[place]
            marks[place] = number, max(since, marks[place - 1][1])
    return found


def _without(lines: Lines, is_cleared: IsCleared | None) -> Lines:
    return [one for one in lines if is_cleared and not is_cleared(one[0])]


def _key_of(line: bytes) -> bytes | None:
    """The key of a line; None for one that is broken, or of another version."""
    if not _is_sealed(line):
        return None
    try:
        record = orjson.loads(line)
        key = bytes.fromhex(record["key"])
        return key if record["v"] == FORMAT_VERSION and len(key) == 32 else None
    except (ValueError, KeyError, TypeError):
        return None


def _call_of(line: bytes) -> tuple[bytes, str, bytes] | None:
    """The key, dialect and canonical call of a line; None if it has none, or is broken."""
    key = _key_of(line) if b'"call":' in line else None
    if key is None:
        return None
    record = orjson.loads(line)
    dialect, call = record.get("dialect"), record.get("call")
    if not (isinstance(dialect, str) and isinstance(call, dict)):
        return None
    try:
        return key, dialect, dumps(call)
    except TypeError:  # nested deeper than can be written
        return None


def _parse(line: bytes) -> Parsed:
    """Raises `_OtherVersion`, or ValueError, KeyError or TypeError for a broken line."""
    is_sealed = _is_sealed(line)
    record = orjson.loads(line)
    version = record["v"]
    if is_sealed or "sum" not in record:
        # The first version had no sum, and nobody knows what later ones have.
        if type(version) is int and (version in OLD_VERSIONS or version > FORMAT_VERSION):
            raise _OtherVersion(version)
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version!r}")
    if not is_sealed:
        raise ValueError("wrong checksum" if "sum" in record else "no checksum")
    key = bytes.fromhex(record["key"])
    if len(key) != 32:
        raise ValueError("key is not 32 bytes")
    at, seconds, dialect = record["at"], record["seconds"], record["dialect"]
    if not (isinstance(at, int | float) and isinstance(seconds, int | float)):
        raise TypeError("times are not numbers")
    if not isinstance(dialect, str):
        raise TypeError("dialect is not text")
    answers, tokens = record["answers"], record["tokens"]
    if not (isinstance(answers, list) and answers and all(isinstance(a, dict) for a in answers)):
        raise TypeError("answers are not a list of objects")
    if not (isinstance(tokens, list) and all(type(count) is int for count in tokens)):
        raise TypeError("tokens are not a list of integers")
    deltas = record.get("deltas", [None] * len(answers))
    if not (isinstance(deltas, list) and all(isinstance(d, list | None) for d in deltas)):
        raise TypeError("deltas are not a list of lists")
    samples = [
        Sample(dumps(answer), at, seconds, count, b"" if steps is None else dumps(steps))
        for answer, count, steps in zip(answers, tokens, deltas, strict=True)
    ]
    since = record.get("since")
    if not isinstance(since, int | float | None):
        raise TypeError("since is not a number")
    return key, dialect, samples, bytes.fromhex(record.get("raw", "")), since


def _try_to(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as e:
        logger.debug("%s", e)
