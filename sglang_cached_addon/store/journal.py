"""The journal: `cache.jsonl`, one self-describing JSON object a line, added at the end.

    {"v":2,"key":"<64 hex>","raw":"<32 hex>","since":<unix s>,"dialect":"...","at":<unix s>,
     "seconds":<s>,"tokens":[..],"deltas":[..],"call":{..},"answers":[{..},..]}

`answers` are samples, each the whole answer of its API for n=1; `deltas`, where they came as
streams, holds the boundaries of each one's events, or null; `call` is what was asked, on the
first line of a key; `raw` names a body that the first answer of the key answers; `since`, if
any, says that samples of the key stored before that are no more. One
thread owns the file: it writes what has gathered, at the latest `FLUSH_SECONDS` after it
came, so a killed process loses no more than that. A clear of all cuts the file to nothing; one
of some keys takes all of their lines out, and no other: what is left of them is written to
`cache.jsonl.new` and renamed, so there is no half of it. At open, a torn last line is moved to
`cache.jsonl.torn`; a broken line elsewhere, or one of another format version, is skipped
and counted. A lock on the folder keeps a second process out.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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

    def __init__(self, folder: Path) -> None:
        """Takes the folder (made if missing) for this process; raises `StoreError`."""
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
        self._clears: list[Clear] = []
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        """Set when the writer should not wait: for a clear, and at the end."""
        self._closing = False
        self._writing = 0
        self._thread: threading.Thread | None = None

    # On the event loop: nothing here waits for the disk.

    @property
    def pending(self) -> int:
        """Lines that are not yet written."""
        return len(self._pending) + self._writing

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes | None,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float | None = None,
    ) -> None:
        """Queues one line; `content` is the canonical call, or None if the journal has it."""
        line = encode(key, dialect, content, samples, raw, since)
        with self._changed:
            self._pending.append((key, line))
            if len(self._pending) == 1:
                self._changed.notify()

    def clear(self, is_cleared: IsCleared | None = None) -> Future[None]:
        """Queues the removal of some keys' lines, or of the whole file's; what was pending of them
        goes with it."""
        done: Future[None] = Future()
        with self._changed:
            self._pending = _without(self._pending, is_cleared)
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
                except _OldVersion:
                    old += 1
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
            while not (self._pending or self._clears or self._closing):
                self._changed.wait()
        self._hurry.wait(FLUSH_SECONDS)
        with self._changed:
            clears, self._clears = self._clears, []
            lines, self._pending = self._pending, []
            self._writing = len(lines)
            if not self._closing:
                self._hurry.clear()
        if clears:
            self._clear_all(clears)
        if lines:
            self._append_all(lines)
        self._writing = 0
        with self._changed:
            return bool(self._pending or self._clears or not self._closing)

    def _append_all(self, lines: Lines) -> None:
        """Writes them as one run of whole lines, waiting while the disk refuses."""
        data = b"".join(line for _, line in lines)
        start, warned = os.fstat(self._file.fileno()).st_size, False
        while True:
            try:
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
                return
            except OSError as e:
                _try_to(lambda: self._file.truncate(start))
                if not warned:
                    logger.warning("cannot write %s: %s; trying on", self.path, e.strerror)
                    warned = True
            if self._hurry.wait(RETRY_SECONDS):
                with self._changed:
                    for _, is_cleared in self._clears:
                        lines = _without(lines, is_cleared)
                    if self._clears:
                        # Clears go first; what they leave of these is still before what came since.
                        self._pending, self._writing = lines + self._pending, 0
                        return
                logger.warning("%s: %d bytes could not be written", self.path, len(data))
                return  # the end has come

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
        """Puts a journal without some keys' lines in the place of this one: written aside, synced,
        and renamed over it. A line whose key cannot be told stays, for people to look at."""
        file = None
        try:
            with open(self.path, "rb") as lines, open(self._aside, "wb") as kept:
                # Who may not read the answers now may not read them afterwards.
                os.fchmod(kept.fileno(), os.fstat(lines.fileno()).st_mode & 0o7777)
                for line in lines:
                    key = _key_of(line)
                    if key is None or not is_cleared(key):
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
        # If this fails the lines are gone, but might be back after a power cut: not to be promised.
        sync_folder(self.folder)


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
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class _OldVersion(Exception):
    """A line of a version that was once written."""


def _without(lines: Lines, is_cleared: IsCleared | None) -> Lines:
    return [one for one in lines if is_cleared and not is_cleared(one[0])]


def _key_of(line: bytes) -> bytes | None:
    """The key of a line; None for one that is broken, or of another version."""
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


def _parse(line: bytes) -> tuple[bytes, str, list[Sample], bytes, float | None]:
    """Raises ValueError, KeyError or TypeError for a line that this version cannot use."""
    record = orjson.loads(line)
    if record["v"] in OLD_VERSIONS:
        raise _OldVersion
    if record["v"] != FORMAT_VERSION:
        raise ValueError(f"format version {record['v']!r}")
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
