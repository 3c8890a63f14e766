"""The simulator of the tests: faults, controls, other processes behind the same port.

A `Simulator` lives in one event loop; `release`, `restart`, `down` and `up` are for other threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

from sglang_cached_addon.simulator import server as small
from sglang_cached_addon.simulator.handler import Routes
from tests.simulator import control, faults, info, lists, messages
from tests.simulator.engine import DEFAULT_PROFILE, Engine
from tests.simulator.handler import Echo, Handler
from tests.simulator.profile import Profile

_ROUTES: Routes = {
    **small.ROUTES,
    **{path: (small.ROUTES.get(path, (("POST",),))[0], faults.sample) for path in faults.APIS},
    **control.ROUTES,
    **lists.ROUTES,
    **messages.ROUTES,
    "/v1/models": (("GET",), info.models),
    **dict.fromkeys(("/model_info", "/get_model_info"), (("GET",), info.model_info)),
    **dict.fromkeys(("/server_info", "/get_server_info"), (("GET",), info.server_info)),
}


def bind(host: str, port: int) -> socket.socket:
    """A socket that has a port but does not listen: who connects to it is refused."""
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except OSError:
        place.close()
        raise
    place.setblocking(False)
    return place


class Simulator(Engine, small.Simulator):
    """The server: an engine behind HTTP, at `url` once started."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        super().__init__(profile)
        self._address = ("", 0)
        self._place: socket.socket | None = None  # keeps the port while it is down
        self._sockets: set[Echo] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def rules(self) -> list[Any]:
        return [
            ("/v1/realtime", Echo, {"engine": self, "sockets": self._sockets}),
            (".*", Handler, {"engine": self, "routes": _ROUTES, "admin": control.ROUTES}),
        ]

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        bound = await super().start(host, port)
        self._address = (host, bound)
        return bound

    async def stop(self) -> None:
        await self._end()
        if self._place is not None:
            self._place.close()
            self._place = None

    async def _end(self) -> None:
        """Close the listener and all connections, but keep the port."""
        if self._place is not None:
            return
        for handler in list(self._sockets):
            handler.drop()
        await super().stop()
        with contextlib.suppress(OSError):  # taken in this instant: `up` will say so
            self._place = bind(*self._address)
        while self._sockets or self.resting:
            await asyncio.sleep(0)

    async def _begin(self, profile: Profile) -> None:
        await self._end()
        self.boot(profile)
        place, self._place = self._place or bind(*self._address), None
        place.listen()
        self.listen([place])

    def down(self) -> None:
        """As if the process were gone: connections are dropped, new ones refused.

        Returns when all is done, like `up` and `restart`; not to be called in the simulator's own
        event loop. What was `received` stays, as do counters and faults.
        """
        self._wait(self._end())

    def up(self, **changes: Any) -> None:
        """Another process at the same port, started as the last one but for these fields.

        What was done to the last one is forgotten: updates, adapters, pauses. One that is not
        `down` is ended before.
        """
        self._wait(self._begin(replace(self.loaded.launched, **changes)))

    def restart(self, **changes: Any) -> None:
        """`down` and `up`."""
        self.up(**changes)

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        if self._loop is None or threading.get_ident() == self._thread:
            work.close()
            raise RuntimeError("the simulator is not running in another thread")
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def release(self) -> None:
        """Let all held requests go on; from any thread."""

        def free() -> None:
            for job in self.jobs:
                job.release()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(free)


@contextlib.contextmanager
def running(profile: Profile = DEFAULT_PROFILE, port: int = 0) -> Iterator[Simulator]:
    """A simulator in a thread of its own: ready on entry, all closed and joined on exit."""
    with small.running(Simulator(profile), port) as simulator:
        yield simulator
