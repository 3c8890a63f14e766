"""Where samples live: pools in memory, and the journal on disk behind them.

`open_store` puts the two together. Knows nothing of HTTP, dialects or mitmproxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from sglang_cached_addon.cache import Sample
from sglang_cached_addon.store.journal import Journal, Loaded, StoreError
from sglang_cached_addon.store.memory import Memory

__all__ = ["DiskStore", "Loaded", "StoreError"]


class DiskStore:
    """Pools in memory, every change also in the journal."""

    def __init__(self, folder: Path) -> None:
        """Opens a cache folder and loads it; raises `StoreError` with what to do."""
        self.memory = Memory()
        self.journal = Journal(folder)
        try:
            self.loaded: Loaded = self.journal.load(self.memory.append)
        except BaseException:
            self.journal.close()
            raise

    @property
    def generation(self) -> int:
        return self.memory.generation

    def get(self, key: bytes) -> Sequence[Sample]:
        return self.memory.get(key)

    def find(self, raw: bytes) -> bytes | None:
        return self.memory.find(raw)

    def append(
        self,
        key: bytes,
        dialect: str,
        content: bytes,
        samples: Sequence[Sample],
        raw: bytes = b"",
    ) -> None:
        is_new = not self.memory.get(key)
        self.memory.append(key, dialect, samples, raw)
        self.journal.append(key, dialect, content if is_new else None, samples, raw)

    def clear(self) -> Future[None]:
        """Empties memory now and the file in its turn; the future is done when the disk has it."""
        self.memory.clear()
        return self.journal.clear()

    def close(self) -> None:
        """Writes what is pending, and lets go of the folder."""
        self.journal.close()
