"""What is done again and again on the event loop."""

from __future__ import annotations

import asyncio
import time

from sglang_cached_addon.proxy.every import Every


def test_every() -> None:
    """It is called again and again, with how late it is, and not after the end."""

    async def run() -> None:
        delays: list[float] = []
        every = Every(0.05, delays.append)
        time.sleep(0.15)
        while len(delays) < 3:
            await asyncio.sleep(0.01)
        every.end()
        assert delays[0] >= 0.09
        assert min(delays) >= 0
        count = len(delays)
        await asyncio.sleep(0.15)
        assert len(delays) == count

    asyncio.run(run())
