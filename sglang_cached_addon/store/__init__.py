"""Where samples live: in memory, in the journal of a folder, and on a server that proxies share.

Every kind of store is a `contract.OpenStore`: `disk`, `memory` (which ends with the process), and
`redis` on top of one of these. Knows nothing of HTTP, dialects or mitmproxy.
"""

from __future__ import annotations

from sglang_cached_addon.store.disk import DiskStore
from sglang_cached_addon.store.files import StoreError
from sglang_cached_addon.store.journal.loading import Loaded
from sglang_cached_addon.store.limits import Limits, machine_memory

__all__ = ["DiskStore", "Limits", "Loaded", "StoreError", "machine_memory"]
