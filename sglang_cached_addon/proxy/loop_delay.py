"""Notes by how much the event loop is late: for so long nobody is answered."""

from __future__ import annotations

import asyncio

from sglang_cached_addon.core.timings import Histogram

SECONDS = 0.25
"""How often it is looked."""


class LoopDelay:
    """Looks at the event loop that runs, from its making on."""

    def __init__(self, delays: Histogram) -> None:
        self._delays = delays
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(SECONDS, self._look)

    def _look(self) -> None:
        self._delays.add(max(0.0, self._loop.time() - self._timer.when()))
        self._timer = self._loop.call_later(SECONDS, self._look)

    def end(self) -> None:
        self._timer.cancel()
