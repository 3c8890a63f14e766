"""How a proxy begins and ends: store, upstream, listening, banner; then the drain.

What is under way when the end is asked for is given time; being asked twice ends it at once. It
changes no request.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from enum import Enum

from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.master import Master
from mitmproxy.proxy.server import ConnectionIO

from sglang_cached_addon import __version__
from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.core.printable import MAX_LINE, printable
from sglang_cached_addon.proxy import inside
from sglang_cached_addon.proxy.checks import StartError
from sglang_cached_addon.proxy.listening import Listening, url_here, url_of
from sglang_cached_addon.proxy.selfcheck import InsidePart, has
from sglang_cached_addon.proxy.start import Start
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.upstream import Health

SETTLE_SECONDS = 0.05
"""How long bytes that had arrived when the drain began may take to be read, in seconds."""

HANG_UP_SECONDS = 1.0
"""How long idle connections may take to close after the drain, in seconds."""


class Drain(Enum):
    """How far the drain is."""

    AHEAD = "clients are let in"
    UNDER_WAY = "what is under way is given time"
    HURRIED = "nobody is waited for any more"


class Lifetime:
    """An addon that opens the cache, listens, tells people so, and ends it all in good order."""

    name = "sglang_cached_lifetime"

    def __init__(self, master: Master, addon: SglangCached, start: Start) -> None:
        self._master = master
        self._addon = addon
        self._start = start
        self._state = Health.UNKNOWN
        """The state of upstream when it was last asked before the start."""
        self._exit_code = 0
        self._listening: list[Listening] = []
        self._drain = Drain.AHEAD
        self._draining: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Opens the store, looks at upstream, and only then listens, until it is stopped; the exit
        code. Raises `StartError`."""
        try:
            self._addon.open()
        except (ValueError, StoreError) as e:
            raise StartError(str(e)) from None
        self._state = await self._addon.look()
        if self._drain is Drain.AHEAD:
            await self._master.run()
        else:
            self._addon.done()
        # What is kept and then lost is no good end, be the log read or not.
        return self._exit_code or int(self._addon.lost > 0)

    async def running(self) -> None:
        servers = list(_proxyserver().servers)
        unknown = ", ".join(self._master.options.deferred)
        if unknown:
            print(f"sglang-cached: --set: unknown options: {unknown}", file=sys.stderr)
        if unknown or not all(server.is_running for server in servers):
            self._exit_code = 1
            self._master.shutdown()
            return
        for server in servers if has(InsidePart.SERVERS) else ():
            self._listening += [
                Listening(end, server.handle_stream) for end in inside.servers_of(server)
            ]
        address = servers[0].listen_addrs[0]
        self._introduce(url_of(address), f"{url_here(address)}/cache/")

    def _introduce(self, url: str, page: str) -> None:
        """Prints what was started, and where."""
        parts = self._addon.parts
        assert parts
        upstream, loaded = parts.upstream, parts.store.loaded
        if self._state is Health.DOWN:
            print(
                f"sglang-cached: warning: {upstream.url} does not answer; "
                "stored answers are served, and misses get 502 until it does",
                file=sys.stderr,
            )
        print(f"sglang-cached {__version__}")
        print(f"  listening  {url}")
        print(f"  page       {page}")
        print(f"  upstream   {upstream.url}")
        if upstream.model.identity:
            model = printable(upstream.model.identity.model, MAX_LINE)
            print(f"  model      {model} ({upstream.model.fingerprint[:16]})")
        entries = f"{loaded.keys} entries, {loaded.samples} samples"
        print(f"  cache      {parts.place} ({entries})")
        if self._start.web:
            print(f"  web        {self._web_url()}")

    def stop(self) -> None:
        """Ends the proxy: at once if asked twice."""
        if self._drain is Drain.AHEAD:
            self._drain = Drain.UNDER_WAY
            self._draining = asyncio.ensure_future(self._run_drain())
        else:
            self._drain = Drain.HURRIED

    async def _run_drain(self) -> None:
        """Lets in no more clients, waits (not for ever) for what is being answered, and hangs
        up."""
        await _until(self._is_hurrying, self._start.drain_accept)
        for listening in self._listening:
            listening.close()
        await _proxyserver().servers.update([])
        await asyncio.sleep(SETTLE_SECONDS)
        seconds = self._start.drain - self._start.drain_accept
        await _until(lambda: self._is_hurrying() or not self._is_busy(), seconds)
        for io in self._clients():
            if io.handler:
                io.handler.cancel("shutting down")
        await _until(lambda: not _proxyserver().connections, HANG_UP_SECONDS)
        self._master.shutdown()

    def _is_hurrying(self) -> bool:
        return self._drain is Drain.HURRIED

    def _is_busy(self) -> bool:
        """Whether requests are being answered, or answers wait for slow clients."""
        return bool(self._addon.active) or any(map(_unsent, self._clients()))

    def _clients(self) -> list[ConnectionIO]:
        """The open connections of clients."""
        handlers = _proxyserver().connections.values()
        return [h.transports[h.client] for h in handlers if h.client in h.transports]

    def _web_url(self) -> str:
        # mitmproxy 12 has a URL with a token in it.
        options = self._master.options
        return str(
            getattr(self._master, "web_url", f"http://{options.web_host}:{options.web_port}/")
        )


def _proxyserver() -> Proxyserver:
    found = inside.proxyserver()
    assert found
    return found


def _unsent(io: ConnectionIO) -> bool:
    """Whether bytes of an answer wait for a slow client."""
    writer = io.writer
    return isinstance(writer, asyncio.StreamWriter) and bool(
        writer.transport.get_write_buffer_size()
    )


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition holds, but at most so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
