"""How many samples a store has, in all, by API and by model. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sglang_cached_addon.core.families import FAMILY
from sglang_cached_addon.core.keys import PREFIX


class Totals:
    """Sums over samples that come and go. What is kept of families of calls is no answer: only its
    bytes count."""

    def __init__(self) -> None:
        self.empty()

    def empty(self) -> None:
        """Begins at zero again."""
        self.samples = 0
        """The number of samples."""
        self.bytes = 0
        """The bytes that the store counts for them."""
        self.by_dialect: Counter[str] = Counter()
        """The number of samples of each dialect."""
        self._by_model: Counter[bytes] = Counter()
        """The number of samples of each model: of each beginning of keys."""
        self._families: Counter[bytes] = Counter()
        """What is kept of families of calls, by key."""

    def __len__(self) -> int:
        """The number of keys."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """The number of keys that have answers."""
        return len(self) - len(self._families)

    def by_model(self) -> dict[str, int]:
        """The number of samples by the beginnings of their keys, in hexadecimal."""
        return {prefix.hex(): count for prefix, count in self._by_model.items()}

    def tally(self, key: bytes, dialect: str, samples: int, size: int) -> None:
        """Adds samples of one key and their bytes, or takes them away where they are negative."""
        model = key[:PREFIX]
        self.bytes += size
        if dialect == FAMILY:
            self._families[key] += samples
            self._families += Counter()  # without those of which nothing is left
            return
        self.samples += samples
        self.by_dialect[dialect] += samples
        self._by_model[model] += samples
        if samples <= 0 and not self.by_dialect[dialect]:
            del self.by_dialect[dialect]
        if samples <= 0 and not self._by_model[model]:
            del self._by_model[model]

    def as_json(self) -> dict[str, Any]:
        """The sums, as `take_json` reads them."""
        return {
            "samples": self.samples,
            "bytes": self.bytes,
            "by_dialect": dict(self.by_dialect),
            "by_model": self.by_model(),
            "families": {key.hex(): count for key, count in self._families.items()},
        }

    def take_json(self, sums: Mapping[str, Any]) -> None:
        """Takes the sums that `as_json` wrote. Raises ValueError, KeyError or TypeError for what is
        none."""
        by_model = {bytes.fromhex(prefix): int(n) for prefix, n in sums["by_model"].items()}
        self.samples, self.bytes = int(sums["samples"]), int(sums["bytes"])
        self.by_dialect, self._by_model = Counter(sums["by_dialect"]), Counter(by_model)
        families = sums.get("families", {})  # a former version had none
        self._families = Counter({bytes.fromhex(key): int(n) for key, n in families.items()})
