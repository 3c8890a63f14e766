"""What is done again and again on the event loop."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from pytest import approx

from sglang_cached_addon.proxy.every import Every


class Swift(asyncio.SelectorEventLoop):
    """Does not wait: where others would, its clock is put forward."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(Passing(self))

    def time(self) -> float:
        return self.now


class Passing(selectors.DefaultSelector):
    """Lets the time of a loop pass, in which nothing happens."""

    def __init__(self, loop: Swift) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        self._loop.now += timeout or 0.0
        return super().select(0)


def test_every() -> None:
    """It is called again and again, with how late it is, and not after the end."""
    loop, delays = Swift(), list[float]()

    async def run() -> None:
        every = Every(0.05, delays.append)
        loop.now += 0.15  # it is busy with something else
        await asyncio.sleep(0.26)
        assert delays == approx([0.1, 0, 0, 0, 0, 0])
        every.end()
        await asyncio.sleep(1000)
        assert len(delays) == 6

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
