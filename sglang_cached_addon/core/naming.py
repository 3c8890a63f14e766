"""The names of bodies and of pools under one model, for each API and tenant.

Pure. How a name is made, `keys` knows; what is stored under it, `Store`.
"""

from __future__ import annotations

from collections.abc import Iterable

from sglang_cached_addon.core.epochs import Epochs, adapters
from sglang_cached_addon.core.keys import Digester

TENANTS = 1024
"""How many digesters are kept at hand, where each credential has a cache of its own."""


class Naming:
    """Names what is asked of one model."""

    def __init__(self, fingerprint: str = "", epochs: Epochs | None = None) -> None:
        """The fingerprint is empty where nobody knows which model answers."""
        self.fingerprint = fingerprint
        self._epochs = epochs or Epochs()
        self._digesters: dict[tuple[str, bytes], Digester] = {}

    def raw(self, dialect: str, tenant: bytes, body: bytes) -> bytes:
        """The name of a body as it came."""
        return self._digester(dialect, tenant).raw(body)

    def keys(self, dialect: str, tenant: bytes, items: Iterable[bytes]) -> tuple[bytes, ...]:
        """The names of the items' pools."""
        digester, epochs = self._digester(dialect, tenant), self._epochs
        if not epochs.adapters_token:
            return tuple([digester.key(item) for item in items])
        return tuple([digester.key(item, epochs.adapter_epochs(adapters(item))) for item in items])

    def _digester(self, dialect: str, tenant: bytes) -> Digester:
        found = self._digesters.get((dialect, tenant))
        if found is None:
            if len(self._digesters) >= TENANTS:
                self._digesters.clear()
            found = Digester(self.fingerprint, dialect, tenant, self._epochs.adapters_token)
            self._digesters[dialect, tenant] = found
        return found
