"""What a store has that nobody else uses."""

from __future__ import annotations

from math import inf

from sglang_cached_addon.core.epochs import Epochs
from sglang_cached_addon.store.memory import MemoryStore


class Nobody:
    """Knows no epochs, and takes none."""

    epochs = Epochs()

    def adopt(self, known: object, theirs: object) -> None:
        raise AssertionError("nobody shares anything")


def test_what_only_shared_stores_have() -> None:
    """A store that is not shared says so in every way, and needs nobody to be."""
    store = MemoryStore()
    store.start(Nobody())
    assert (store.name, store.salt, store.unsent, store.facts(), store.lost) == ("", 0, 0, {}, 0)
    assert (store.ttl, store.is_expired(0.0)) == (inf, False)
    store.close()
