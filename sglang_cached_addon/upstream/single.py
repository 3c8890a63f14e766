"""Work of which one piece is under way at a time, and which all who want it share.

Knows asyncio only. Whoever waits may leave: the work goes on for the others, and for its own
effects. It must not raise. Safe with tasks that run as far as they can when they are created
(Python 3.12's eager tasks): work that ends at once is simply done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Begin = Callable[[], Coroutine[Any, Any, T]]


class Single(Generic[T]):
    """Work that is shared while it is under way."""

    def __init__(self) -> None:
        self._task: asyncio.Task[T] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it is under way."""
        return self._task is not None and not self._task.done()

    def join(self, begin: Begin[T]) -> asyncio.Future[T]:
        """What comes of the work that is under way, or of new work if there is none."""
        task = self._task
        if task is None or task.done():
            task = self._task = asyncio.ensure_future(begin())
        return asyncio.shield(task)

    def cancel(self) -> None:
        """Ends what is under way."""
        if self._task:
            self._task.cancel()


class Following(Generic[T]):
    """Work of which everybody wants a piece that begins after they asked: those who ask while one
    is under way share the next."""

    def __init__(self, pause: float = 0.0) -> None:
        """`pause`: at least so many seconds from the begin of one to that of the next."""
        self._pause = pause
        self._begun_at = float("-inf")
        self._next: tuple[asyncio.Future[T], Begin[T]] | None = None
        self._working: Single[None] = Single()

    @property
    def is_busy(self) -> bool:
        """Whether a piece is under way, or wanted."""
        return self._next is not None or self._working.is_busy

    def join(self, begin: Begin[T]) -> asyncio.Future[T]:
        """What comes of the next piece of work; of those who share it, the first says how it
        begins."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future(), begin
        answer, _ = self._next
        self._working.join(self._work)
        return asyncio.shield(answer)

    async def _work(self) -> None:
        while self._next:
            pause = self._begun_at + self._pause - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._begun_at = time.monotonic()
            (answer, begin), self._next = self._next, None
            try:
                answer.set_result(await begin())
            finally:
                answer.cancel()  # without effect where there is a result

    def cancel(self) -> None:
        """Ends what is under way."""
        self._working.cancel()
        if self._next:
            self._next[0].cancel()


async def within(seconds: float, work: Awaitable[T]) -> T | None:
    """What comes of the work, or None if that takes longer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await work
    return None
