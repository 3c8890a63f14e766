"""Written-down calls are sent to a proxy, so many at a time, and what becomes of them is summed up.

A call that fails for want of the server is sent again, a few times. Where the proxy cannot be
reached at all, or somebody interrupts it, the rest is not sent. Knows asyncio, and no terminal.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from sglang_cached_addon.cli.requests import Request
from sglang_cached_addon.cli.tally import Tally, is_denied, told
from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.connection import Broken, Headers, WholeResponse

PASSING = frozenset((429, 502, 503, 504))
"""Statuses of a server that may answer in a moment."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts at most."""

INTERRUPTED = "interrupted"

Lines = Iterator[tuple[int, Request]]
"""Calls, with the numbers of their lines."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How calls are sent."""

    url: str
    headers: Headers = ()
    at_once: int = 32
    attempts: int = 4
    seconds: float = 600.0
    """How long an answer may take."""
    pause: float = 1.0
    """Seconds before the second attempt; before each later one it is twice as long."""


async def warm(manner: Manner, lines: Lines, done: Callable[[], object] = lambda: None) -> Tally:
    """Sends all calls; `done` is called behind each. Cancelled, it gives what came of those that
    were answered."""
    warming = _Warming(manner, lines, done)
    started = time.monotonic()
    task = asyncio.current_task()
    assert task
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(manner.at_once):
                group.create_task(warming.work())
    except* Unreachable as e:
        warming.tally.stopped = f"{manner.url}: {e.exceptions[0]}"
    except* asyncio.CancelledError:
        warming.tally.stopped = INTERRUPTED
    finally:
        warming.close()
    while task.cancelling():  # the group of tasks may have cancelled this one, too
        task.uncancel()
    warming.tally.seconds = time.monotonic() - started
    return warming.tally


class _Failed(Exception):
    """A call has no answer; the message says why."""


class _Warming:
    """Calls that are being sent."""

    def __init__(self, manner: Manner, lines: Lines, done: Callable[[], object]) -> None:
        parts = urlsplit(manner.url)
        self._client = Client(f"{parts.scheme}://{parts.netloc}")
        self._base = parts.path.rstrip("/")
        self._manner, self._lines, self._done = manner, lines, done
        self.tally = Tally()

    async def work(self) -> None:
        """Sends one call after the other, as long as there are any. Raises `Unreachable`."""
        for number, request in self._lines:
            try:
                self.tally.take(await self._attempt(request))
            except _Failed as e:
                self.tally.fail(number, request.name, str(e))
            self._done()

    async def _attempt(self, request: Request) -> WholeResponse:
        """The answer to a call, if that is no failure; raises `_Failed`, or `Unreachable`."""
        pause = self._manner.pause
        for left in reversed(range(self._manner.attempts)):
            try:
                async with asyncio.timeout(self._manner.seconds):
                    answer = await self._client.ask(
                        "POST", self._base + request.path, self._manner.headers, request.body
                    )
            except Unreachable:
                if not left:
                    raise
            except Broken as e:
                if not left:
                    raise _Failed(f"no answer: {e}") from None
            except TimeoutError:
                raise _Failed(f"no answer within {self._manner.seconds:g} s") from None
            else:
                if answer.status == 200 or is_denied(answer):
                    return answer
                if answer.status not in PASSING or not left:
                    raise _Failed(told(answer))
            await asyncio.sleep(min(pause, LONGEST_PAUSE))
            pause *= 2
        raise AssertionError("the last attempt ends in one way or another")

    def close(self) -> None:
        self._client.close()
