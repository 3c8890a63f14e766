"""The link to the server: whether it is up, what keeps it so, and what is done when it is back.

A server that does not answer is left alone for a moment, and then asked again; until it has been
told what it may have missed, and has told what was missed here, nothing is read or written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from math import inf
from typing import Any

from sglang_cached_addon.store.redis.leases import RENEW_SECONDS, Leases
from sglang_cached_addon.store.redis.outbox import Outbox
from sglang_cached_addon.store.redis.protocol import CHANGED, CHANNEL, RELEASED
from sglang_cached_addon.store.redis.runs import SharedRuns
from sglang_cached_addon.store.redis.server import Away, SharedServer

logger = logging.getLogger("sglang_cached_addon")

POLL_SECONDS = 0.5
"""How often it is looked for what others have changed, should the news of it be lost."""

RETRY_SECONDS = 1.0
"""How long a server that is away is left alone."""


class Link:
    """One proxy's link to one server."""

    def __init__(self, server: SharedServer, run_ttl: float = inf) -> None:
        self.server = server
        self.outbox = Outbox(server, self._lost)
        self.leases = Leases(self.outbox)
        self.runs = SharedRuns(self.outbox, server.name, run_ttl)
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that it runs in; None before and after."""
        self.is_up = False
        """Whether the server answers, and knows what it has to."""
        self._is_said = False
        """Whether it is in the log that the server is away."""
        self._changed = asyncio.Event()
        """Set when others have told of a change."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listening: asyncio.Task[None] | None = None

    def start(self, sync: Callable[[], Awaitable[object]]) -> None:
        """Connects, in the background; `sync` exchanges with the server what has changed, and
        raises `Away`."""
        self.loop = asyncio.get_running_loop()
        self.spawn(self.outbox.run())
        self.spawn(self._keep(sync))
        self.spawn(self._renew())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs something in the background, until it is done or the link is closed."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep(self, sync: Callable[[], Awaitable[object]]) -> None:
        while True:
            self._changed.clear()
            try:
                await sync()
                if not self.is_up:
                    # Before all that waits to be written, so that nobody takes them meanwhile.
                    retakes = self.leases.retakes()
                    await asyncio.gather(*(self.outbox.ask(*command) for command in retakes))
                    self._found()
            except Away as e:
                self._lost(str(e))
            except Exception:
                logger.exception(
                    "sglang-cached: an error while keeping up with %s", self.server.name
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS if self.is_up else RETRY_SECONDS):
                    await self._changed.wait()

    def _found(self) -> None:
        self.is_up = True
        self.outbox.open()
        self.runs.resume()
        self._listening = self.spawn(self._listen())
        if self._is_said:
            self._is_said = False
            logger.info("sglang-cached: %s is back", self.server.name)

    def _lost(self, why: str) -> None:
        if self.is_up or not self._is_said:
            logger.warning(
                "sglang-cached: %s: %s; answers are not shared until it is back",
                self.server.name,
                why,
            )
        self.is_up, self._is_said = False, True
        self.runs.lost()
        if self._listening:
            self._listening.cancel()
        self.leases.freed()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if self.is_up:
                self.leases.prolong()
                self.runs.renew()

    async def _listen(self) -> None:
        """Hears what others tell; what is missed is seen later."""
        while True:
            with suppress(Away):
                async for message in self.server.listen(CHANNEL):
                    if message.startswith(RELEASED):
                        self.leases.freed(message.removeprefix(RELEASED))
                    elif message == CHANGED:
                        self._changed.set()
            await asyncio.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Hangs up. What was not written is not shared."""
        self.loop = None
        for task in tuple(self._tasks):
            task.cancel()
        self.is_up = False
        with suppress(RuntimeError):  # there may be no loop any more
            self.server.hang_up()
