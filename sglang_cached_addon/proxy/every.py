"""Does something again and again on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Every:
    """Calls something every so many seconds on the loop that runs, with by how much the loop is
    late: for so long it has answered nobody."""

    def __init__(self, seconds: float, call: Callable[[float], object]) -> None:
        self._seconds = seconds
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._turn)

    def _turn(self) -> None:
        late = max(0.0, self._loop.time() - self._timer.when())
        self._timer = self._loop.call_later(self._seconds, self._turn)
        self._call(late)

    def end(self) -> None:
        self._timer.cancel()
