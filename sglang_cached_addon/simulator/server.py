"""The server: its routes, its life, and a thread to run it in.

A `Simulator` lives in one event loop; `release` may be called from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application

from sglang_cached_addon.simulator import admin
from sglang_cached_addon.simulator.engine import DEFAULT_PROFILE, Engine
from sglang_cached_addon.simulator.handler import Echo, Handler, Routes
from sglang_cached_addon.simulator.profile import Profile
from sglang_cached_addon.simulator.sampling import APIS, sample

_ROUTES: Routes = {
    **dict.fromkeys(APIS, (("POST",), sample)),
    "/generate": (("PUT", "POST"), sample),
    "/abort_request": (("POST",), admin.abort),
    "/flush_cache": (("GET", "POST"), admin.flush_cache),
    "/update_weights_from_disk": (("POST",), admin.update_weights),
    "/tokenize": (("POST",), admin.tokenize),
    "/v1/models": (("GET",), admin.models),
    "/": (("GET", "HEAD"), admin.root),
    **dict.fromkeys(("/model_info", "/get_model_info"), (("GET",), admin.model_info)),
    **dict.fromkeys(("/server_info", "/get_server_info"), (("GET",), admin.server_info)),
    **dict.fromkeys(("/health", "/health_generate", "/ping"), (("GET",), admin.nothing)),
}


class Simulator(Engine):
    """The server: an engine behind HTTP, at `url` once started."""

    def __init__(self, profile: Profile = DEFAULT_PROFILE) -> None:
        super().__init__(profile)
        self.url = ""
        self._sockets: set[Echo] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: HTTPServer | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; the port (0: any free one). Raises OSError when it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        routes: list[Any] = [
            ("/v1/realtime", Echo, {"engine": self, "sockets": self._sockets}),
            (".*", Handler, {"engine": self, "routes": _ROUTES}),
        ]
        self._server = HTTPServer(Application(routes, log_function=lambda handler: None))
        self._server.add_socket(listener)
        bound: int = listener.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        self.startup_time = {"load_weight": 0.0, "tokenizer_e2e": time.perf_counter()}
        return bound

    async def stop(self) -> None:
        """Close the listener and all connections; no sample runs on."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.stop()
        for job in self.jobs:
            job.leave()
        for handler in list(self._sockets):
            handler.drop()
        await server.close_all_connections()
        while self.jobs or self._sockets:
            await asyncio.sleep(0)

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
