"""A shared store beside a folder; the rest is in e2e/test_redis.py."""

from __future__ import annotations

from pathlib import Path

from sglang_cached_addon.store import DiskStore
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import KEY, Proxy, said, sharing

pytestmark = needs_redis


def test_a_folder_has_what_was_brought(server: RedisServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache"

    async def work(one: Proxy, two: Proxy) -> None:
        two.append("a", at=1.0)
        two.append("b", at=2.0)
        await two.written()
        while len(one.texts()) < 2:
            await one.bring(2, claims=False)
        one.append("c", at=3.0)
        await one.written()

    sharing(server, work, lambda: DiskStore(folder))
    found = DiskStore(folder)
    assert said(found.get(KEY)) == "abc"
    assert [sample.stored_at for sample in found.get(KEY)] == [1.0, 2.0, 3.0]
    found.close()
