"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time

from sglang_cached_addon.core.timings import Histogram
from sglang_cached_addon.proxy import loop_delay
from sglang_cached_addon.proxy.loop_delay import LoopDelay


def test_late() -> None:
    """Who holds the loop up is seen in the histogram, and after the end nothing is."""

    async def run() -> None:
        delays = Histogram()
        watch = LoopDelay(delays)
        time.sleep(loop_delay.SECONDS + 0.1)
        while not sum(delays.counts):
            await asyncio.sleep(0.01)
        watch.end()
        assert delays.sum >= 0.09
        count = sum(delays.counts)
        await asyncio.sleep(2 * loop_delay.SECONDS)
        assert sum(delays.counts) == count

    asyncio.run(run())
