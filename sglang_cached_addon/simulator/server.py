"""The server: its routes, its life, and a thread to run it in."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Collection, Coroutine, Iterator
from typing import Any, TypeVar

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from sglang_cached_addon.simulator import info
from sglang_cached_addon.simulator.engine import DEFAULT_PROFILE, Engine
from sglang_cached_addon.simulator.handler import Handler, Routes
from sglang_cached_addon.simulator.profile import Profile
from sglang_cached_addon.simulator.sampling import APIS, sample

ROUTES: Routes = {
    **dict.fromkeys(APIS, (("POST",), sample)),
    "/generate": (("PUT", "POST"), sample),
    "/v1/models": (("GET",), info.models),
    "/": (("GET", "HEAD"), info.root),
    **dict.fromkeys(("/model_info", "/get_model_info"), (("GET",), info.model_info)),
    **dict.fromkeys(("/server_info", "/get_server_info"), (("GET",), info.server_info)),
    **dict.fromkeys(("/health", "/health_generate", "/ping"), (("GET",), info.nothing)),
}
_BACKLOG = 4096  # connections that have not been looked at


class Simulator(Engine):
    """The server: an engine behind HTTP, at `url` once started. Lives in one event loop."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        super().__init__(profile)
        self.url = ""
        self._server: HTTPServer | None = None

    def rules(self) -> list[Any]:
        """Which path is served by what, as tornado wants it told."""
        return [(".*", Handler, {"engine": self, "routes": ROUTES})]

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port (0: any free one). Raises OSError when it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        places = bind_sockets(port, host, family, _BACKLOG)
        bound: int = places[0].getsockname()[1]
        self.listen(places)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        return bound

    def listen(self, places: Collection[socket.socket]) -> None:
        """Serve at sockets that listen."""
        application = Application(self.rules(), log_function=lambda handler: None)
        self._server = HTTPServer(application)
        self._server.add_sockets(places)

    async def stop(self) -> None:
        """Close the listener and all connections; no sample runs on."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.stop()
        for job in self.jobs:
            job.leave()
        await server.close_all_connections()
        while self.jobs:
            await asyncio.sleep(0)


S = TypeVar("S", bound=Simulator)


@contextlib.contextmanager
def running(simulator: S, port: int = 0) -> Iterator[S]:
    """A simulator in a thread of its own: ready on entry, all closed and joined on exit."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()

    def live() -> None:
        with runner:
            loop.run_forever()

    def wait(work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result()

    thread = threading.Thread(target=live, name="sglang-simulator")
    thread.start()
    try:
        wait(simulator.start(port=port))
        try:
            yield simulator
        finally:
            wait(simulator.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
