"""What goes to a shared server, in order: all that has gathered goes in one round trip.

An ask is answered, or fails, within bounded time. Nobody waits for a write: it is kept until the
server has taken it, however long that takes, unless too much is kept already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

from sglang_cached_addon.store.redis.protocol import Command, Result
from sglang_cached_addon.store.redis.server import Away, Full, SharedServer

logger = logging.getLogger("sglang_cached_addon")

MAX_PENDING = 64 << 20
"""Bytes of writes that are kept; what is more is not written."""

BATCH_BYTES, BATCH_COMMANDS = 1 << 20, 256
"""What goes in one round trip at most; a single write may be larger."""

FULL_SECONDS = 1.0
"""How long a server that is full is given no writes that take room."""


@dataclass(slots=True, eq=False)
class Write:
    """Something that is to be done."""

    command: Callable[[], Command]
    """Makes the command, when it goes out."""
    key: bytes = b""
    """The key of the pool that it is about, if any."""
    size: int = 0
    """The bytes of room that it takes."""
    done: Callable[[Result], object] = lambda result: None
    """Is told the answer, which is `CommandRefused` if it cannot be done."""


class Outbox:
    """Asks and writes on their way."""

    def __init__(self, server: SharedServer, lost: Callable[[str], object]) -> None:
        """`lost` is told why, when the server is away."""
        self.is_open = False
        """Whether writes go out."""
        self.is_full = False
        """Whether the server takes nothing more to be stored."""
        self.commands = 0
        """The asks and writes that have gone out."""
        self.dropped = 0
        """The writes that there was no room for."""
        self.bytes = 0
        """The bytes of the writes that wait."""
        self._server, self._lost = server, lost
        self._writes: dict[Write, None] = {}
        """The writes that wait, in their order."""
        self._of: Counter[bytes] = Counter()
        """How many writes are about each pool."""
        self._asks: deque[tuple[Command, asyncio.Future[Result]]] = deque()
        self._news = asyncio.Event()
        self._full_until = -inf

    def __len__(self) -> int:
        return len(self._writes)

    def waits(self, key: bytes) -> bool:
        """Whether there are writes about this pool."""
        return key in self._of

    def ask(self, *command: Any) -> asyncio.Future[Result]:
        """What the server answers. Fails with `Away`; `Full` and `CommandRefused` are answers."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._asks.append((command, answer))
        self._news.set()
        return answer

    def tell(self, command: Command) -> None:
        """Queues a write that takes no room, and whose answer says nothing."""
        self.queue(Write(lambda: command))

    def queue(self, write: Write) -> bool:
        """Queues a write; False if there is no room for it."""
        if write.size and self.bytes + write.size > MAX_PENDING:
            if not self.dropped:
                logger.warning(
                    "sglang-cached: %s: more than %d MB are to be written; the rest is not shared",
                    self._server.name,
                    MAX_PENDING >> 20,
                )
            self.dropped += 1
            return False
        self._writes[write] = None
        self._of[write.key] += 1
        self.bytes += write.size
        self._news.set()
        return True

    def open(self) -> None:
        self.is_open = True
        self._news.set()

    def drop(self, is_dropped: Callable[[Write], bool]) -> None:
        """Forgets writes."""
        for write in [write for write in self._writes if is_dropped(write)]:
            self._forget(write)

    def _forget(self, write: Write) -> None:
        del self._writes[write]
        self.bytes -= write.size
        self._of[write.key] -= 1
        if not self._of[write.key]:
            del self._of[write.key]

    async def run(self) -> None:
        """Sends, for ever."""
        while True:
            pause = self._full_until - time.monotonic()
            writes = self._batch(is_full=pause > 0) if self.is_open else []
            if self._asks or writes:
                await self._send(writes)
                continue
            self._news.clear()
            is_held = self.is_open and self._writes
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if is_held else None):
                    await self._news.wait()

    def _batch(self, *, is_full: bool) -> list[Write]:
        """What goes out next; to a server that is full, what takes no room."""
        batch: list[Write] = []
        size = 0
        for write in self._writes:
            if is_full and write.size:
                continue
            if batch and (size + write.size > BATCH_BYTES or len(batch) >= BATCH_COMMANDS):
                break
            batch.append(write)
            size += write.size
        return batch

    async def _send(self, writes: list[Write]) -> None:
        asks = [self._asks.popleft() for _ in range(min(len(self._asks), BATCH_COMMANDS))]
        commands = [*(write.command() for write in writes), *(command for command, _ in asks)]
        self.commands += len(commands)
        try:
            results = await self._server.send(commands, sum(write.size for write in writes))
        except Away as e:
            self.is_open = False
            self._lost(str(e))
            self._fail(asks, e)
            return
        except BaseException as e:
            self._fail(asks, Away(repr(e)))
            raise
        self._written(list(zip(writes, results, strict=False)))
        for (_, answer), result in zip(asks, results[len(writes) :], strict=True):
            if not answer.done():
                answer.set_result(result)

    def _fail(
        self, asks: Iterable[tuple[Command, asyncio.Future[Result]]], error: Exception
    ) -> None:
        for _, answer in (*asks, *self._asks):
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # nobody may wait for it any more
        self._asks.clear()

    def _written(self, answers: Sequence[tuple[Write, Result]]) -> None:
        done = []
        for write, result in answers:
            if isinstance(result, Full):
                self._note_full(result)
                continue
            done.append((write, result))
            if write in self._writes:  # else it was dropped meanwhile
                self._forget(write)
        if self.is_full and len(done) == len(answers) and not self.bytes:
            self.is_full = False
            logger.info("sglang-cached: %s has room again", self._server.name)
        for write, result in done:
            write.done(result)

    def _note_full(self, full: Full) -> None:
        self._full_until = time.monotonic() + FULL_SECONDS
        if not self.is_full:
            self.is_full = True
            logger.warning(
                "sglang-cached: %s takes nothing more (%s); answers are not shared until it does",
                self._server.name,
                full,
            )
