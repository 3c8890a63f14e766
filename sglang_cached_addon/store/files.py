"""The cache folder: which process has it, who may read it, and how a file replaces another one.

The folder and its files are their owner's alone, whatever the umask says: prompts and answers are
in them. Synchronous, and knows nothing of what is in the files.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

FILE_MODE, FOLDER_MODE = 0o600, 0o700

_OURS = ("cache.jsonl", "cache.index", "cache.lock", "cache.sketches", "runs.jsonl", "state.json")
"""The beginnings of the names of all files that a store makes."""

IGNORE = "ignore.toml"
"""The name of a file that people write for it."""

LOCK_TRIES, LOCK_PAUSE = 20, 0.01
"""How often a lock that somebody has is asked for, and for how many seconds it is left between."""

CHOOSE_ANOTHER = "choose another folder with --cache-path"


class StoreError(OSError):
    """The cache folder cannot be used; the message says why and what to do."""


def private(path: str | Path, flags: int) -> int:
    """Opens a file for its owner alone: an `opener` for `open`."""
    handle = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
    try:
        if stat.S_IMODE(os.fstat(handle).st_mode) != FILE_MODE:
            with suppress(PermissionError):  # somebody else's, who lets us write
                os.fchmod(handle, FILE_MODE)
    except BaseException:
        os.close(handle)
        raise
    return handle


def close_to_others(folder: Path) -> None:
    """Makes what is there already the owner's alone, and logs it once."""
    theirs = [path for path in folder.iterdir() if not path.name.startswith(_OURS)]
    # A folder of other things as well, or one for all, as /tmp, is not ours to close.
    is_ours = (
        all(path.name == IGNORE for path in theirs) and not folder.stat().st_mode & stat.S_ISVTX
    )
    wanted = [(folder, FOLDER_MODE)] if is_ours else []
    wanted += [(path, FILE_MODE) for path in folder.iterdir() if path not in theirs]
    changed, failure = [], ""
    for path, mode in wanted:
        try:
            found = path.lstat().st_mode
            if stat.S_IMODE(found) & ~mode and (stat.S_ISREG(found) or path == folder):
                path.chmod(mode)
                changed.append(path)
        except OSError as e:
            failure = f"{path}: {e.strerror}"
    if changed:
        logger.warning(
            "%s: others could read what is in it (%s); now only its owner can",
            folder,
            ", ".join("the folder" if path == folder else path.name for path in changed),
        )
    if failure:
        logger.warning("cannot keep others from reading %s", failure)


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that has a folder."""

    pid: str
    url: str
    """Where it listens; empty as long as it does not."""

    @classmethod
    def read(cls, handle: int) -> Owner:
        """What the file of the lock says."""
        pid, _, url = os.pread(handle, 4096, 0).decode("utf-8", "replace").partition("\n")
        return cls(pid.strip() or "unknown", url.strip())


def lock(folder: Path) -> int:
    """Takes the folder's lock; returns the file descriptor that is to be closed to release it.
    Raises `StoreError`."""
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(FOLDER_MODE)
        handle = private(folder / "cache.lock", os.O_RDWR | os.O_CREAT)
    except OSError as e:
        raise StoreError(f"cannot use {folder}: {e.strerror}; {CHOOSE_ANOTHER}") from e
    if not _is_locked(handle):
        owner = Owner.read(handle)
        os.close(handle)
        raise StoreError(f"{folder} is in use by process {owner.pid}; stop it, or {CHOOSE_ANOTHER}")
    note(handle)
    return handle


def _is_locked(handle: int) -> bool:
    """Whether the lock is ours now. Who only looks whose it is has it for an instant, too."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(LOCK_PAUSE)
    return False


def note(handle: int, url: str = "") -> None:
    """Writes into the file of a lock that is held whose it is, and where that process listens."""
    data = "".join(f"{line}\n" for line in (os.getpid(), url) if line).encode()
    os.pwrite(handle, data, 0)
    os.ftruncate(handle, len(data))


def owner_of(folder: Path) -> Owner | None:
    """The process that has the folder now, if there is one."""
    try:
        handle = os.open(folder / "cache.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return Owner.read(handle)
    finally:
        os.close(handle)
    return None


def replace(path: Path, data: bytes) -> None:
    """Writes a file whole: aside, synced, and renamed over the old one."""
    aside = path.with_name(path.name + ".new")
    try:
        with open(aside, "wb", opener=private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
