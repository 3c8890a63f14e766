"""The folder's lock, and the file at its path, whatever others do to them.

Somebody may rename, replace, cut or remove the journal while it is open. What is in the file is
served, and would be gone with this process, or be another's: so the file gets its name back, or is
written anew where nothing has it by a name. Belongs to the writer; does not know what is in a file.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sglang_cached_addon.store.files import lock, note, sync_folder
from sglang_cached_addon.store.journal.file import JournalFile

logger = logging.getLogger(__name__)


class Guard:
    """Keeps one folder from other processes, and its journal at its path."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder, and makes it if it is missing; raises `StoreError`."""
        self.before_restoring: Callable[[], object] = lambda: None
        """Called before a file is put back that was removed, perhaps with its folder."""
        self.is_astray = False
        """Whether nothing has the file by a name, so that it is to be written anew."""
        self.has_complained = False
        """Whether it is in the log that the file cannot be put back."""
        self._folder = folder
        self._lock = lock(folder)
        self._url = ""
        self._noting = threading.Lock()

    def announce(self, url: str) -> None:
        """Writes down where this process listens, for who finds its folder. For any thread."""
        with self._noting:
            self._url = url
            with suppress(OSError):
                note(self._lock, url)

    def close(self) -> None:
        """Frees the folder."""
        with self._noting:  # the number of the descriptor is another file's soon
            os.close(self._lock)
            self._lock = -1

    def look(self, file: JournalFile) -> None:
        """Sees to it that the path names the file, or notes that it is astray."""
        try:
            ours = file.stat()
            with suppress(FileNotFoundError):
                there = file.path.stat()
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    self.is_astray = self.has_complained = False
                    return
            if not self.is_astray:
                self._put_back(file, is_named=bool(ours.st_nlink))
        except OSError as e:
            if not self.has_complained:
                logger.warning(
                    "%s: was renamed or removed, and cannot be put back: %s; trying on",
                    file.path,
                    e.strerror or e,
                )
            self.has_complained = True

    def _put_back(self, file: JournalFile, *, is_named: bool) -> None:
        if not self._folder.is_dir() or not os.fstat(self._lock).st_nlink:
            held = lock(self._folder)  # a new lock file, unless that is somebody else's by now
            with self._noting:
                os.close(self._lock)
                self._lock = held
            self.announce(self._url)
        self.before_restoring()  # first: without it, answers might be taken for another model's
        path = file.path
        if path.exists() and path.stat().st_size:
            theirs = path.with_name(f"{path.name}.other")
            path.replace(theirs)
            logger.warning("%s: another file was put in its place; it is in %s", path, theirs)
        if not is_named or not self._link(file):
            self.is_astray = True
            return
        logger.warning(
            "%s: was renamed; it has its name again, with all that was stored. It needs no "
            "rotation: see --max-bytes",
            path,
        )

    def _link(self, file: JournalFile) -> bool:
        """Gives the file its name again, whatever others it has; False if this system cannot."""
        try:
            file.aside.unlink(missing_ok=True)
            folder = os.open(self._folder, os.O_RDONLY)
            try:  # without a folder's descriptor, what is linked is the link itself
                os.link(
                    f"/proc/self/fd/{file.handle}",
                    file.aside.name,
                    dst_dir_fd=folder,
                    follow_symlinks=True,
                )
            finally:
                os.close(folder)
            file.aside.replace(file.path)
            sync_folder(self._folder)
        except OSError as e:
            logger.debug("%s: %s", file.path, e)
            return False
        return True

    def written_anew(self, path: Path) -> None:
        """Notes that another file has the name now, with all that was stored."""
        if self.is_astray:
            self.is_astray = False
            logger.warning("%s: was removed; written anew", path)
