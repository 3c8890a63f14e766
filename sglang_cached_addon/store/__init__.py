"""Where samples live: pools in memory, and the journal on disk behind them.

`open_store` puts the two together. Knows nothing of HTTP, dialects or mitmproxy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from sglang_cached_addon.cache import Brought, Sample
from sglang_cached_addon.store.journal import Journal, Loaded
from sglang_cached_addon.store.memory import Memory
from sglang_cached_addon.store.state import StateFile, StoreError

__all__ = ["DiskStore", "Loaded", "StoreError"]


class DiskStore:
    """Pools in memory, every change also in the journal."""

    def __init__(self, folder: Path, fsync: str = "interval") -> None:
        """Opens a cache folder and loads it; raises `StoreError` with what to do. `fsync` as
        `Journal` has it."""
        self.memory = Memory()
        self.journal = Journal(folder, fsync)
        self._unsaid: dict[bytes, float | None] = {}
        """Keys of which the journal lacks a line, and the `since` that went with it."""
        self.state = StateFile(folder)
        """What is known of the upstream, beside the answers."""
        try:
            loaded = self.journal.load(self._remember)
        except BaseException:
            self.journal.close()
            raise
        # What was replaced by later lines was not loaded.
        self.loaded: Loaded = replace(loaded, keys=len(self.memory), samples=self.memory.samples)

    @property
    def generation(self) -> int:
        return self.memory.generation

    @property
    def clears(self) -> int:
        return self.memory.clears

    def get(self, key: bytes) -> Sequence[Sample]:
        return self.memory.get(key)

    def find(self, raw: bytes) -> bytes | None:
        return self.memory.find(raw)

    def bring(self, needs: Mapping[bytes, int], *, claims: bool) -> Awaitable[Brought] | None:
        return None  # all that there is is at hand, and nobody else fills these pools

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float | None = None,
    ) -> None:
        # All lines of a key stay or go together, so its first one keeps what was asked: samples
        # that a `since` drops leave their line where it is.
        is_new = not self.memory.get(key)
        self._remember(key, dialect, samples, raw, since=since)
        is_unsaid = key in self._unsaid
        if is_unsaid and (lost := self._unsaid.pop(key)) is not None:
            # What it dropped would be back after a restart, in front of what was stored since.
            since = lost if since is None else max(lost, since)
        said = content if is_new or is_unsaid else None
        if not self.journal.append(key, dialect, said, samples, raw, since=since):
            self._unsaid[key] = since

    def _remember(
        self,
        key: bytes,
        dialect: str,
        samples: Sequence[Sample],
        raw: bytes = b"",
        *,
        since: float | None = None,
    ) -> None:
        """To memory; the journal is told what that drops."""
        before, seen = self.memory.bytes, self.memory.generation
        self.memory.append(key, dialect, b"", samples, raw, since=since)
        if self.memory.generation != seen:
            added = sum(len(sample.answer) + len(sample.deltas) for sample in samples)
            self.journal.died(before + added - self.memory.bytes)

    def clear(self, model: bytes | None = None, *, others: bool = False) -> Future[None]:
        """Empties memory now and the file in its turn; the future is done when the disk has it.
        With a `model`, only what belongs to it (as a key begins), or to all `others`."""
        if model is None:
            self.memory.clear()
            self._unsaid.clear()
            return self.journal.clear()

        def is_cleared(key: bytes) -> bool:
            return key.startswith(model) is not others

        self.memory.clear(is_cleared)
        self._unsaid = {key: at for key, at in self._unsaid.items() if not is_cleared(key)}
        return self.journal.clear(is_cleared)

    def calls(self, limit: int, seconds: float) -> Iterator[tuple[bytes, str, bytes]]:
        """As `Journal.calls`."""
        return self.journal.calls(limit, seconds)

    def compact(self) -> Future[None]:
        """As `Journal.compact`."""
        return self.journal.compact()

    def close(self) -> None:
        """Writes what is pending, and lets go of the folder."""
        self.journal.close()
