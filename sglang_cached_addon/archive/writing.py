"""Taking pools into a folder: what an archive has, or another folder.

A sample that is there already is not added again; new ones come behind the others, in their order,
and keep when they were made. Needs the folder for itself. Synchronous.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.core.policy import Fsync
from sglang_cached_addon.store import placing
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal import Journal
from sglang_cached_addon.store.state import StateFile


@dataclass(slots=True)
class Taken:
    """What came of it."""

    entries: int = 0
    """Those to which something was added."""
    samples: int = 0
    """Those that were added."""
    present: int = 0
    """Samples that were there already."""

    def sentence(self, folder: Path) -> str:
        """The same for people."""
        return (
            f"{folder}: {self.samples} samples added to {self.entries} entries, "
            f"{self.present} were there already"
        )


class Writing:
    """A folder that takes pools."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, and makes it if it is missing. Raises `StoreError`."""
        self.taken = Taken()
        self._journal = Journal(folder, Fsync.INTERVAL)
        self._state = StateFile(folder)
        try:
            self._journal.load()
            self.is_empty = not self._state.load() and not self._journal.index.entries
            """Whether nothing is known here, and nothing stored."""
        except BaseException:
            self._journal.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.close()

    def finish(self) -> Taken:
        """Writes what is left to be written. Raises `StoreError`."""
        self._journal.close()
        if self._journal.lost:
            raise StoreError(f"{self._journal.path}: {self._journal.lost} samples were not written")
        return self.taken

    def learn(self, state: Mapping[str, Any]) -> None:
        """Takes what another cache knows of its server, where nothing is known here; else only the
        names of models. Raises `StoreError`."""
        if self.is_empty and state:
            self._state.save(dict(state))
        self.is_empty = False
        self.name(state.get("models", {}))

    def name(self, models: Mapping[str, str]) -> None:
        """Learns the names of models, by fingerprint. Raises `StoreError`."""
        state = self._state.load()
        known = state.get("models", {})
        if models.keys() - known.keys():
            self._state.save({**state, "models": {**models, **known}})

    def take(self, pool: Addition) -> None:
        """Adds the samples of a pool that are not there yet. Raises `StoreError`."""
        self.is_empty = False
        index = self._journal.index
        present = self._journal.read(pool.key, waits=True) if pool.key in index else []
        if present is None:
            raise StoreError(f"cannot read {self._journal.path}")
        is_family = pool.dialect == FAMILY
        missing = without(pool.samples, present, is_dated=not is_family)
        if missing:
            self._add(pool, missing)
        if not is_family:  # those are of no call
            self.taken.entries += bool(missing)
            self.taken.samples += len(missing)
            self.taken.present += len(pool.samples) - len(missing)

    def _add(self, pool: Addition, missing: Sequence[Sample]) -> None:
        index = self._journal.index
        content = b"" if pool.key in index else pool.content
        start, kept = index.end(pool.key), 0
        places = range(start, start + len(missing))
        for stop in placing.line_ends(places, missing):
            line = Addition(pool.key, pool.dialect, content, missing[kept:stop])
            self._append(line, places[kept])
            content, kept = b"", stop

    def _append(self, line: Addition, slot: int) -> None:
        if room := self._journal.room():
            room.result()
        if not self._journal.append(line, slot):
            raise StoreError(f"cannot write {self._journal.path}: the disk takes nothing more")


def without(
    samples: Iterable[Sample], present: Iterable[Sample], *, is_dated: bool = True
) -> list[Sample]:
    """The samples that are not among those that are present. Equal answers are one sample only
    where they were stored at the same time (if `is_dated`), and as often as they are there: else
    they were drawn twice."""

    def name(sample: Sample) -> tuple[bytes, float]:
        return sample.answer, sample.stored_at if is_dated else 0.0

    there = Counter(map(name, present))
    missing = []
    for sample in samples:
        if there[name(sample)] > 0:
            there[name(sample)] -= 1
        else:
            missing.append(sample)
    return missing
