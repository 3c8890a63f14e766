"""The link comes up, goes down and comes back."""

from __future__ import annotations

import pytest

from sglang_cached_addon.core.cache import Brought
from tests.redis import RedisServer, needs_redis
from tests.store.redis.proxies import Proxy, sharing, until

pytestmark = needs_redis


def test_up_and_down(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """What was stored while the server was away is there once it is back; each is logged once."""
    caplog.set_level("INFO")

    async def work(one: Proxy, two: Proxy) -> None:
        server.stop()
        await until(lambda: not (one.store.is_up or two.store.is_up))
        one.append("a")
        assert one.store.facts()["pending"] == 1
        assert one.store.unsent == 0
        assert await one.bring(2) == Brought()
        server.start()
        await until(lambda: one.store.is_up and two.store.is_up)
        await one.written()
        await two.bring(1)
        assert two.texts() == "a"
        for said in ("not shared until it is back", "/0 is back"):
            assert sum(r.getMessage().endswith(said) for r in caplog.records) == 2, said

    sharing(server, work)
