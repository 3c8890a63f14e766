"""Accepts the clients of a server that listens: as many as there are descriptors for.

asyncio's own way tries on after the last descriptor is gone, once for each connection that waits,
says each time that it failed, and tries all that again a second later, each on its own. Here who
cannot be taken in waits with the system, and one line says so.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sglang_cached_addon.proxy import inside
from sglang_cached_addon.wire import descriptors

logger = logging.getLogger("sglang_cached_addon")

BACKLOG = 4096
"""How many connections the system holds until they are accepted here. It may allow fewer
(`net.core.somaxconn`)."""

AT_ONCE = 100
"""How many clients are accepted before other work has its turn."""

SAY_SECONDS = 60.0
"""How many seconds lie at least between two warnings that no descriptors are left."""

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Where to ask on this machine for who listens at all addresses."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one client to its end."""


def url_of(address: Sequence[Any]) -> str:
    """The URL of what listens at an address, which begins with host and port."""
    host, port = address[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def url_here(address: Sequence[Any]) -> str:
    """As `url_of`, as it is to be asked on this machine."""
    return url_of((LOOPBACK.get(address[0], address[0]), address[1]))


class Listening:
    """The listening sockets of one server."""

    def __init__(self, server: asyncio.Server, serve: Serve) -> None:
        """Takes a server's place at its sockets."""
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._said = float("-inf")
        self._retry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets = inside.take_sockets(server, self._loop)
        for end in self._sockets:
            end.setblocking(False)
            end.listen(BACKLOG)
        self._go_on()

    def close(self) -> None:
        """Accepts nobody any more."""
        if self._retry:
            self._retry.cancel()
        for end in self._sockets:
            self._loop.remove_reader(end)
            end.close()
        self._sockets.clear()

    def _go_on(self) -> None:
        self._retry = None
        for end in self._sockets:
            self._loop.add_reader(end, self._take_in, end)

    def _wait(self) -> None:
        """Lets clients wait with the system until there are descriptors."""
        for end in self._sockets:
            self._loop.remove_reader(end)
        self._retry = self._loop.call_later(descriptors.WAIT_SECONDS, self._look_again)

    def _look_again(self) -> None:
        if descriptors.is_left(descriptors.for_clients()):
            self._go_on()
            return
        if self._is_awaited():
            self._say()
            descriptors.ask_for_room()
        self._wait()

    def _is_awaited(self) -> bool:
        """Whether a client waits to be accepted."""
        waiting = select.poll()
        for end in self._sockets:
            waiting.register(end, select.POLLIN)
        return bool(waiting.poll(0))

    def _take_in(self, end: socket.socket) -> None:
        for _ in range(AT_ONCE):
            if not descriptors.is_left(descriptors.for_clients()):
                self._wait()
                return
            try:
                client, _ = end.accept()
            except OSError as e:
                if e.errno in descriptors.SHORT:
                    self._wait()
                # Else there is nobody, or who was there has left.
                return
            client.setblocking(False)
            task = self._loop.create_task(self._begin(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _begin(self, client: socket.socket) -> None:
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, self._serve, loop=self._loop)
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, client)
        except OSError:  # who was there has left
            client.close()

    def _say(self) -> None:
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            logger.warning(
                "sglang-cached: %d file descriptors are not enough (ulimit -n): "
                "new clients wait until others leave",
                descriptors.limit(),
            )
