"""All stores do the same, as far as one proxy can see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglang_cached_addon.core.cache import Addition, Sample
from sglang_cached_addon.store import DiskStore
from sglang_cached_addon.store.contract import OpenStore
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import SharedStore
from tests.store.redis.proxies import KEY, OTHER, said


def test_all_do_the_same(tmp_path: Path) -> None:
    """Each kind of store keeps, replaces, finds and clears alike; a shared one without its server,
    too."""
    kinds: list[Callable[[], OpenStore]] = [
        MemoryStore,
        lambda: DiskStore(tmp_path / "disk"),
        lambda: SharedStore("redis://127.0.0.1:1", MemoryStore()),
        lambda: SharedStore("redis://127.0.0.1:1", DiskStore(tmp_path / "shared")),
    ]

    async def use(store: OpenStore) -> list[Any]:
        def append(key: bytes, texts: str, at: float, **more: Any) -> None:
            samples = [Sample(b'{"":"%c"}' % ord(text), at, 0.5, 1) for text in texts]
            assert store.append(Addition(key, "chat", b"{}", samples, **more))

        append(KEY, "ab", 1.0, raw=b"r" * 16)
        append(OTHER, "x", 1.0)
        append(KEY, "c", 2.0)
        append(KEY, "d", 3.0, since=1.5)
        seen: list[Any] = [said(store.get(KEY)), store.find(b"r" * 16) == KEY]
        seen += [len(store.index), store.index.samples, dict(store.index.by_dialect)]
        seen += [store.generation, store.clears, store.room(), store.has_room(1), store.lost]
        done = asyncio.wrap_future(store.clear(KEY[:8]))
        seen += [said(store.get(KEY)), said(store.get(OTHER)), store.clears, store.unsent]
        if not store.name:
            await done
        else:
            with pytest.raises(OSError, match="does not answer"):
                await done
        store.remove(OTHER)
        seen += [said(store.get(OTHER)), len(store.index), store.index.samples]
        store.close()
        return seen

    found = [asyncio.run(use(kind())) for kind in kinds]
    wanted: list[Any] = ["dbc", True, 2, 4, {"chat": 4}, 1, 0, None, True, 0]
    assert found[0] == [*wanted, "", "x", 1, 0, "", 0, 0]
    assert found[1:] == [found[0]] * 3
