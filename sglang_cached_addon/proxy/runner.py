"""Starts mitmproxy in this process, around the addon.

A lean master by default: of mitmproxy's forty addons only those that a reverse proxy
needs, because each of the others is asked at every hook of every request. With `web`, the
whole of mitmweb. Ends with an exit code; what a user can mend is one line on stderr.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from mitmproxy import exceptions
from mitmproxy.addons import core, disable_h2c, next_layer, proxyserver, script, tlsconfig
from mitmproxy.master import Master
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server import ConnectionIO
from mitmproxy.version import MITMPROXY

from sglang_cached_addon import __version__
from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.core.printable import MAX_LINE, printable
from sglang_cached_addon.proxy import inside, output
from sglang_cached_addon.proxy.listening import Listening
from sglang_cached_addon.proxy.start import Start
from sglang_cached_addon.store import StoreError
from sglang_cached_addon.upstream import State
from sglang_cached_addon.wire import descriptors

SETTLE_SECONDS = 0.05
"""In which what had arrived when the end began is read, and seen to be under way."""

HANG_UP_SECONDS = 1.0
"""How long idle connections may take to close after that."""


class StartError(Exception):
    """The proxy cannot start; the message says why and what to do."""


def normal_url(url: str) -> str:
    """SCHEME://HOST[:PORT] of an upstream; raises `StartError` if it is none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as e:
        raise StartError(f"--sglang-url {url}: {e}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise StartError(f"--sglang-url {url}: must be like http://localhost:30000")
    if parts.username is not None:
        raise StartError("--sglang-url: leave credentials out; clients send theirs")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise StartError(
            f"--sglang-url {url}: leave off what follows the port; clients send the path"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = {"http": 80, "https": 443}[parts.scheme] if port is None else port
    normal = f"{parts.scheme}://{host}:{port}"
    try:
        ProxyMode.parse(f"reverse:{normal}")
    except ValueError as e:
        raise StartError(f"--sglang-url {url}: {e}") from None
    return normal


def run(start: Start) -> int:
    """Serves until SIGINT or SIGTERM; the process's exit code."""
    settle = output.guard()
    # A terminal that goes away takes its readers with it, but not the cache.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    descriptors.raise_limit()
    try:
        url = normal_url(start.sglang_url)
        if start.web and not has_token():
            raise StartError(
                f"--web: {MITMPROXY} would let every user of this machine read requests, and run "
                "code as you; install mitmproxy 11.1.2 or newer, which needs Python 3.12 or newer"
            )
        scripts = [_script(path) for path in start.scripts]
        _check_port(start.host, start.port, "--port")
        if start.drain_accept > start.drain:
            raise StartError("--drain-accept: must not be more than --drain")
        return asyncio.run(_serve(start, url, scripts))
    except StartError as e:
        print(f"sglang-cached: {e}", file=sys.stderr)
        return 1
    finally:
        settle()


def has_token() -> bool:
    """Whether this mitmweb wants a token from those who use its API."""
    from mitmproxy.tools.web import webaddons  # takes its time, and only `web` needs it

    return hasattr(webaddons, "WebAuth")


def _script(path: str) -> str:
    """The path of a mitmproxy script; raises `StartError` if there is none."""
    try:
        found = Path(path).expanduser()
    except RuntimeError as e:
        raise StartError(f"-s {path}: {e}") from None
    if not found.is_file():
        raise StartError(f"-s {path}: no such file")
    return str(found)


async def _serve(start: Start, url: str, scripts: list[str]) -> int:
    _set_up_logging()
    addon = SglangCached(announce=False)
    options = Options(
        mode=[f"reverse:{url}"],
        listen_host=start.host,
        listen_port=start.port,
        ssl_insecure=start.insecure,
    )
    master = _web_master(options, addon) if start.web else _lean_master(options, addon, url, start)
    startup = Startup(master, addon, start)
    master.addons.add(startup)
    _set(options, start, scripts)
    if start.web:
        _check_port(options.web_host, options.web_port, "--set web_port=N")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, startup.stop)
    return await startup.run()


def _set(options: Options, start: Start, scripts: list[str]) -> None:
    """Hands the user's options to mitmproxy; raises `StartError` naming the one it refuses."""
    try:
        options.update(**start.options, connection_strategy="lazy")
        for name, specs in _by_name(start.sets).items():
            try:
                options.set(*specs, defer=bool(scripts))
            except exceptions.OptionsError as e:
                raise StartError(f"--set {name}: {e}") from None
        if scripts:
            options.update(scripts=scripts)
    except exceptions.OptionsError as e:
        raise StartError(str(e)) from None


def _by_name(specs: Iterable[str]) -> dict[str, list[str]]:
    """NAME=VALUE, by name: the values of a list come together, or each would replace the former."""
    found: dict[str, list[str]] = {}
    for spec in specs:
        found.setdefault(spec.partition("=")[0], []).append(spec)
    return found


def _lean_master(options: Options, addon: SglangCached, url: str, start: Start) -> Master:
    inside.skip_type_checks()
    master = Master(options)
    master.addons.add(core.Core(), proxyserver.Proxyserver(), disable_h2c.DisableH2C())
    if start.scripts:
        master.addons.add(script.ScriptLoader())
    master.addons.add(addon, next_layer.NextLayer())
    if url.startswith("https:"):
        master.addons.add(tlsconfig.TlsConfig())
    return master


def _web_master(options: Options, addon: SglangCached) -> Master:
    # Imported here: it takes half a second, and only this needs it.
    from mitmproxy.tools.web.master import WebMaster

    master = WebMaster(options, with_termlog=False)
    options.update(web_open_browser=False)
    master.addons.add(addon)
    return master


class Startup:
    """An addon that tells people what was started, and ends it in good order."""

    name = "sglang_cached_startup"

    def __init__(self, master: Master, addon: SglangCached, start: Start) -> None:
        self._master = master
        self._addon = addon
        self._start = start
        self._state = State.UNKNOWN
        """Of upstream, when it was looked at."""
        self._exit_code = 0
        self._listening: list[Listening] = []
        self._stopping: asyncio.Task[None] | None = None
        self._hurry = False

    async def run(self) -> int:
        """Opens the store, looks at upstream, and only then listens, until it is stopped; the exit
        code. Raises `StartError`."""
        try:
            self._addon.open()
        except (ValueError, StoreError) as e:
            raise StartError(str(e)) from None
        self._state = await self._addon.look()
        if self._stopping:
            self._addon.done()
        else:
            await self._master.run()
        # What is kept and then lost is no good end, be the log read or not.
        return self._exit_code or int(self._addon.lost > 0)

    async def running(self) -> None:
        servers = list(self._servers)
        unknown = ", ".join(self._master.options.deferred)
        if unknown:
            print(f"sglang-cached: --set: unknown options: {unknown}", file=sys.stderr)
        if unknown or not all(server.is_running for server in servers):
            self._exit_code = 1
            self._master.shutdown()
            return
        for server in servers:
            self._listening += [
                Listening(end, server.handle_stream) for end in inside.servers_of(server)
            ]
        host, port = servers[0].listen_addrs[0][:2]
        self._introduce(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def _introduce(self, url: str) -> None:
        """Tells people what was started."""
        parts = self._addon.parts
        assert parts
        upstream, loaded = parts.upstream, parts.store.loaded
        if self._state is State.DOWN:
            print(
                f"sglang-cached: warning: {upstream.url} does not answer; "
                "stored answers are served, and misses get 502 until it does",
                file=sys.stderr,
            )
        print(f"sglang-cached {__version__}")
        print(f"  listening  {url}")
        print(f"  upstream   {upstream.url}")
        if upstream.identity:
            model = printable(upstream.identity.model, MAX_LINE)
            print(f"  model      {model} ({upstream.fingerprint[:16]})")
        entries = f"{loaded.keys} entries, {loaded.samples} samples"
        print(f"  cache      {parts.place} ({entries})")
        if self._start.web:
            print(f"  web        {self._web_url()}")

    def stop(self) -> None:
        """Ends the proxy: at once if asked twice."""
        if self._stopping:
            self._hurry = True
        else:
            self._stopping = asyncio.ensure_future(self._drain())

    @property
    def _servers(self) -> proxyserver.Servers:
        return self._proxyserver.servers

    @property
    def _proxyserver(self) -> proxyserver.Proxyserver:
        found = self._master.addons.get("proxyserver")
        assert isinstance(found, proxyserver.Proxyserver)
        return found

    async def _drain(self) -> None:
        """Lets in no more clients, waits (not for ever) for what is being answered, and hangs
        up."""
        await _until(lambda: self._hurry, self._start.drain_accept)
        for listening in self._listening:
            listening.close()
        await self._servers.update([])
        await asyncio.sleep(SETTLE_SECONDS)
        seconds = self._start.drain - self._start.drain_accept
        await _until(lambda: self._hurry or not self._is_busy(), seconds)
        for io in self._clients():
            if io.handler:
                io.handler.cancel("shutting down")
        await _until(lambda: not self._proxyserver.connections, HANG_UP_SECONDS)
        self._master.shutdown()

    def _is_busy(self) -> bool:
        """Whether requests are being answered, or answers wait for slow clients."""
        return bool(self._addon.active) or any(map(_unsent, self._clients()))

    def _clients(self) -> list[ConnectionIO]:
        """The open connections of clients."""
        handlers = self._proxyserver.connections.values()
        return [h.transports[h.client] for h in handlers if h.client in h.transports]

    def _web_url(self) -> str:
        # mitmproxy 12 has a URL with a token in it.
        options = self._master.options
        return str(
            getattr(self._master, "web_url", f"http://{options.web_host}:{options.web_port}/")
        )


def _unsent(io: ConnectionIO) -> bool:
    """Whether bytes of an answer wait for a slow client."""
    writer = io.writer
    return isinstance(writer, asyncio.StreamWriter) and bool(
        writer.transport.get_write_buffer_size()
    )


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for a condition, but no longer than that."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


class _Lines(logging.Formatter):
    """Nothing that was sent to the proxy can look like a line of its log."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n    ".join(printable(line, MAX_LINE) for line in lines)


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    # Ours, and what the user's scripts say; of mitmproxy only what goes wrong.
    for name in ("sglang_cached_addon", "__mitmproxy_script__"):
        logging.getLogger(name).setLevel(logging.INFO)


def _check_port(host: str, port: int, option: str) -> None:
    """Raises `StartError` where mitmproxy would fail later, and less clearly."""
    if not 0 <= port <= 65535:
        raise StartError(f"{option}: {port} is no port; use 1 to 65535, or 0 for any free one")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as e:
        raise StartError(
            f"cannot listen on {host}:{port}: {e.strerror}; choose another with {option}"
        ) from e
