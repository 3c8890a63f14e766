"""A journal as it is now, read whole and in its order, beside whoever has the folder.

What is added, compacted or replaced afterwards is not seen. Synchronous. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal.extents import Place
from sglang_cached_addon.store.journal.index import Index
from sglang_cached_addon.store.journal.lines import (
    BROKEN,
    OtherVersion,
    call_of,
    samples_of,
    scan,
)
from sglang_cached_addon.store.journal.reader import FileReader


class Snapshot:
    """The journal of one folder."""

    def __init__(self, path: Path) -> None:
        """Raises `StoreError`."""
        self.broken = 0
        """Lines that cannot be read, and of other versions; they are left out."""
        self._path = path
        self._index = Index()
        try:
            self._file = FileReader(path)
            self._read()
        except OSError as e:
            raise StoreError(f"cannot read {path}: {e.strerror}") from e

    def _read(self) -> None:
        offset = 0
        with self._file.open() as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # it is being written, or torn
                place, offset = Place(offset, len(line)), offset + len(line)
                try:
                    self._index.add(scan(line), place)
                except (OtherVersion, *BROKEN):
                    self.broken += 1

    def pools(self, is_wanted: Callable[[bytes], bool] = lambda key: True) -> Iterator[Addition]:
        """The pools whose keys are wanted, those first that were not added to for the longest
        time, each with its call and all of its samples. Raises `StoreError`."""
        for key in filter(is_wanted, self._index):
            try:
                if (pool := self._pool(key)) is not None:
                    yield pool
            except OSError as e:
                raise StoreError(f"cannot read {self._path}: {e.strerror}") from e

    def _pool(self, key: bytes) -> Addition | None:
        """The pool of a key; None where somebody has cut it off the file meanwhile."""
        content, dialect, samples = b"", "", list[Sample]()
        for extent in self._index.extents(key):
            line = self._file.read(extent.place.offset, extent.place.length, waits=True) or b""
            try:
                found = samples_of(line, key)
            except (OtherVersion, *BROKEN):
                self.broken += 1
                continue
            samples += found[extent.skip : extent.skip + extent.samples]
            dialect = dialect or scan(line).dialect
            if not content and (call := call_of(line)):
                content = call[2]
        return Addition(key, dialect, content, samples) if samples else None
