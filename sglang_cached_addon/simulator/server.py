"""The server: its routes, its life, and a thread to run it in.

A `Simulator` lives in one event loop; `release`, `restart`, `down` and `up` are for other threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application

from sglang_cached_addon.simulator import admin, control
from sglang_cached_addon.simulator.engine import DEFAULT_PROFILE, Engine
from sglang_cached_addon.simulator.handler import Echo, Handler, Routes
from sglang_cached_addon.simulator.profile import Json, Profile
from sglang_cached_addon.simulator.sampling import APIS, sample

_ROUTES: Routes = {
    **dict.fromkeys(APIS, (("POST",), sample)),
    "/generate": (("PUT", "POST"), sample),
    **control.ROUTES,
    "/tokenize": (("POST",), admin.tokenize),
    "/v1/models": (("GET",), admin.models),
    "/": (("GET", "HEAD"), admin.root),
    **dict.fromkeys(("/model_info", "/get_model_info"), (("GET",), admin.model_info)),
    **dict.fromkeys(("/server_info", "/get_server_info"), (("GET",), admin.server_info)),
    **dict.fromkeys(("/health", "/health_generate", "/ping"), (("GET",), admin.nothing)),
    "/ready": (("GET",), admin.ready),
}
_BACKLOG = 4096  # connections that have not been looked at


class Simulator(Engine):
    """The server: an engine behind HTTP, at `url` once started."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        super().__init__(profile)
        self.url = ""
        self._address = ("", 0)
        self._place: socket.socket | None = None  # keeps the port while it is down
        self._sockets: set[Echo] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._server: HTTPServer | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port (0: any free one). Raises OSError when it is taken."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._place = _bind((host, port))
        bound: int = self._place.getsockname()[1]
        self._address = (host, bound)
        self._listen()
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        return bound

    def _listen(self) -> None:
        """Serve at the place that is kept."""
        listener, self._place = self._place or _bind(self._address), None
        try:
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        routes: list[Any] = [
            ("/v1/realtime", Echo, {"engine": self, "sockets": self._sockets}),
            (".*", Handler, {"engine": self, "routes": _ROUTES, "admin": control.ROUTES}),
        ]
        self._server = HTTPServer(Application(routes, log_function=lambda handler: None))
        self._server.add_socket(listener)

    async def stop(self) -> None:
        """Close the listener and all connections; no sample runs on."""
        await self._end()
        if self._place is not None:
            self._place.close()
            self._place = None

    async def _end(self) -> None:
        """The same, but the port is kept."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.stop()
        with contextlib.suppress(OSError):  # taken in this instant: `up` will say so
            self._place = _bind(self._address)
        for job in self.jobs:
            job.leave()
        for handler in list(self._sockets):
            handler.drop()
        await server.close_all_connections()
        while self.jobs or self._sockets or self.resting:
            await asyncio.sleep(0)

    async def _begin(self, profile: Profile) -> None:
        await self._end()
        self.boot(profile)
        self._listen()

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

    def says(self, path: str, body: Json, **changes: Any) -> str:
        """All that the first sample would say, if greedy, under a profile with these changes.

        A tool call says its arguments; reasoning comes first. Adapters are the loaded ones.
        """
        ask = APIS[path].read(body)
        ask.params = [{**params, "temperature": 0} for params in ask.params]
        return self._draw(ask, [""], changes, None)[0].text

    def release(self) -> None:
        """Let all held requests go on; from any thread."""

        def free() -> None:
            for job in self.jobs:
                job.release()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(free)


def _bind(address: tuple[str, int]) -> socket.socket:
    """A socket that has a port but does not listen: who connects to it is refused."""
    place = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.family == socket.AF_INET6:
            place.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        place.bind(address)
    except OSError:
        place.close()
        raise
    place.setblocking(False)
    return place


@contextlib.contextmanager
def running(profile: Profile = DEFAULT_PROFILE, port: int = 0) -> Iterator[Simulator]:
    """A simulator in a thread of its own: ready on entry, all closed and joined on exit."""
    simulator = Simulator(profile)
    ready: concurrent.futures.Future[Callable[[], object]] = concurrent.futures.Future()

    async def live() -> None:
        try:
            await simulator.start(port=port)
        except OSError as error:
            ready.set_exception(error)
            return
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        ready.set_result(lambda: loop.call_soon_threadsafe(ended.set))
        await ended.wait()
        await simulator.stop()

    thread = threading.Thread(target=asyncio.run, args=(live(),), name="sglang-simulator")
    thread.start()
    try:
        end = ready.result()
        try:
            yield simulator
        finally:
            end()
    finally:
        thread.join()
