"""What goes to a shared server, in order: all that has gathered goes in one round trip.

An ask is answered, or fails, within bounded time. A write nobody waits for: it is kept until the
server has taken it, however long that takes, unless too much is kept already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sglang_cached_addon.store.redis import Away, Command, Full, Result, Server

logger = logging.getLogger("sglang_cached_addon")

MAX_PENDING = 64 << 20
"""Bytes of writes that are kept; what is more is not written."""

BATCH_BYTES, BATCH_COMMANDS = 1 << 20, 256
"""What goes in one round trip, at most; one write may be larger."""

FULL_SECONDS = 1.0
"""How long a server that is full is given no writes."""


def _ignore(result: Result) -> None:
    pass


@dataclass(slots=True, eq=False)
class Write:
    """Something that is to be done."""

    key: bytes
    """The pool that it is about, if any."""
    command: Callable[[], Command]
    """Made when it goes out."""
    size: int = 0
    """Bytes."""
    done: Callable[[Result], object] = _ignore
    """Is told the answer; `Refused`, not raised, if it cannot be done."""


class Outbox:
    """Asks and writes on their way."""

    def __init__(self, server: Server, lost: Callable[[str], object]) -> None:
        """`lost` is told why, when the server is away."""
        self.is_open = False
        """Whether writes go out."""
        self.commands = 0
        """Asks and writes that have gone out."""
        self.dropped = 0
        """Writes that there was no room for."""
        self.bytes = 0
        self._server = server
        self._lost = lost
        self._writes: deque[Write] = deque()
        self._of: Counter[bytes] = Counter()
        self._asks: deque[tuple[Command, asyncio.Future[Result]]] = deque()
        self._news = asyncio.Event()
        self._full_until = float("-inf")
        self.is_full = False

    def __len__(self) -> int:
        return len(self._writes)

    def waits(self, key: bytes) -> bool:
        """Whether there are writes about this pool."""
        return key in self._of

    def ask(self, *command: Any) -> asyncio.Future[Result]:
        """What the server answers. Fails with `Away`; `Full` and `Refused` are answers."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._asks.append((command, answer))
        self._news.set()
        return answer

    def tell(self, write: Write) -> bool:
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
        self._writes.append(write)
        self._of[write.key] += 1
        self.bytes += write.size
        self._news.set()
        return True

    def open(self) -> None:
        self.is_open = True
        self._news.set()

    def drop(self, is_dropped: Callable[[Write], bool]) -> None:
        """Forgets writes."""
        self._keep([write for write in self._writes if not is_dropped(write)])

    def _keep(self, writes: list[Write]) -> None:
        self._writes = deque(writes)
        self._of = Counter(write.key for write in writes)
        self.bytes = sum(write.size for write in writes)

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
        count = min(len(self._asks), BATCH_COMMANDS)
        asks = [self._asks.popleft() for _ in range(count)]
        commands = [*(write.command() for write in writes), *(command for command, _ in asks)]
        self.commands += len(commands)
        try:
            results = await self._server.send(commands, sum(write.size for write in writes))
        except Away as e:
            self.is_open = False
            self._lost(str(e))
            for _, answer in [*asks, *self._asks]:
                _fail(answer, e)
            self._asks.clear()
            return
        except BaseException as e:
            for _, answer in [*asks, *self._asks]:
                _fail(answer, Away(repr(e)))
            raise
        self._written(writes, results)
        for (_, answer), result in zip(asks, results[len(writes) :], strict=True):
            if not answer.done():
                answer.set_result(result)

    def _written(self, writes: list[Write], results: list[Result]) -> None:
        done = []
        is_full = False
        for write, result in zip(writes, results, strict=False):
            if isinstance(result, Full):
                is_full = True
                self._note_full(result)
            else:
                done.append((write, result))
        for write, _ in done:
            self._forget(write)
        if self.is_full and not (is_full or self.bytes):
            self.is_full = False
            logger.info("sglang-cached: %s has room again", self._server.name)
        for write, result in done:
            write.done(result)

    def _forget(self, write: Write) -> None:
        try:
            if self._writes and self._writes[0] is write:
                self._writes.popleft()
            else:
                self._writes.remove(write)
        except ValueError:  # dropped meanwhile
            return
        self.bytes -= write.size
        self._of[write.key] -= 1
        if not self._of[write.key]:
            del self._of[write.key]

    def _note_full(self, full: Full) -> None:
        self._full_until = time.monotonic() + FULL_SECONDS
        if not self.is_full:
            self.is_full = True
            logger.warning(
                "sglang-cached: %s takes nothing more (%s); answers are not shared until it does",
                self._server.name,
                full,
            )


def _fail(answer: asyncio.Future[Result], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # nobody may wait for it any more
