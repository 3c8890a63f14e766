"""Pools in memory: key to samples, with the counts that people ask for kept as they change.

No I/O. Not safe for threads: it belongs to the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sglang_cached_addon.cache import Sample


class Memory:
    """All pools, by key."""

    def __init__(self) -> None:
        self._pools: dict[bytes, list[Sample]] = {}
        self._keys: dict[bytes, bytes] = {}
        """By the name of a raw body."""
        self.generation = 0
        """Rises when samples are removed."""
        self.samples = 0
        self.bytes = 0
        """Of the stored answers, and of where their streams' events ended."""
        self.by_dialect: Counter[str] = Counter()
        """Samples."""

    def __len__(self) -> int:
        return len(self._pools)

    def get(self, key: bytes) -> Sequence[Sample]:
        return self._pools.get(key, ())

    def find(self, raw: bytes) -> bytes | None:
        return self._keys.get(raw)

    def append(self, key: bytes, dialect: str, samples: Sequence[Sample], raw: bytes = b"") -> None:
        self._pools.setdefault(key, []).extend(samples)
        if raw:
            self._keys[raw] = key
        self.samples += len(samples)
        self.by_dialect[dialect] += len(samples)
        self.bytes += sum(len(sample.answer) + len(sample.deltas) for sample in samples)

    def clear(self) -> None:
        self.generation += 1
        self._pools.clear()
        self._keys.clear()
        self.by_dialect.clear()
        self.samples = self.bytes = 0
