"""Deleting pools for all proxies: from the server, from here, and from whoever shares them.

Where the server does not answer, nothing is deleted, and who wants it is told to come again: what
is deleted here alone would come back. A server that does it without being heard makes up for it:
this proxy, too, reads in the stream of changes what is to go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from sglang_cached_addon.store.contract import Unavailable
from sglang_cached_addon.store.redis.outbox import Outbox, Write
from sglang_cached_addon.store.redis.protocol import DELETED, Result, publish_change, tell

PATIENCE_SECONDS = 5.0
"""How long who deletes waits for a server that does not answer."""


class Deletions:
    """Of one proxy."""

    def __init__(
        self,
        outbox: Outbox,
        name: str,
        list_of: Callable[[bytes], bytes],
        delete_here: Callable[[bytes], Future[None]],
    ) -> None:
        """`name` is the server's; `delete_here` deletes what is at hand, with what is to be written
        of it."""
        self._outbox, self._name = outbox, name
        self._list_of, self._delete_here = list_of, delete_here

    async def delete(self, key: bytes) -> Future[None]:
        """Deletes a pool: the future is done when no restart brings it back here. Raises
        `Unavailable` where nothing is deleted, and OSError where others do not hear of it."""
        loop = asyncio.get_running_loop()
        here: asyncio.Future[Future[None]] = loop.create_future()
        is_told: asyncio.Future[None] = loop.create_future()

        def unlinked(result: Result) -> None:
            # At once, so that nothing which is at hand is written behind it.
            if not isinstance(result, Exception):
                is_done = self._delete_here(key)
                if not here.done():
                    here.set_result(is_done)

        def told(result: Result) -> None:
            if not isinstance(result, Exception) and not is_told.done():
                is_told.set_result(None)

        writes = (
            Write(lambda: ("UNLINK", self._list_of(key)), key, done=unlinked),
            Write(lambda: tell(DELETED, key), done=told),
            Write(publish_change),
        )
        for write in writes:
            self._outbox.queue(write)
        await asyncio.wait((here, is_told), timeout=PATIENCE_SECONDS)
        if not here.done():
            self._outbox.drop(lambda write: write in writes)
            raise self.unavailable()
        if not is_told.done():
            raise OSError(
                f"deleted here and on {self._name}, which does not answer any more: where else it "
                "is shared, it is deleted when it does; not if this proxy ends before"
            )
        return here.result()

    def unavailable(self) -> Unavailable:
        """What who deletes is told while the server does not answer."""
        return Unavailable(
            f"{self._name} does not answer: nothing is deleted here; delete it again when it does"
        )
