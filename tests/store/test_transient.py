"""A store that ends with the process."""

from __future__ import annotations

import time

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store.transient import MemoryStore

A, B = b"a" * 32, b"b" * 32


def test_expiry_without_a_folder() -> None:
    """Samples that are too old are not given, though there is no folder."""
    now = time.time()
    store = MemoryStore(ttl=100.0)
    store.append(
        Addition(b"a" * 32, "chat", b"", [Sample(b"{}", at, 0.5, 3) for at in (now - 200, now)])
    )
    generation = store.generation
    assert [sample.stored_at for sample in store.get(b"a" * 32)] == [now]
    assert store.generation > generation
    assert store.is_expired(now - 101)
    assert not MemoryStore().is_expired(now - 101)
