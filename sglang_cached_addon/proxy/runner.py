"""Starts mitmproxy in this process, around the addon.

A lean master by default: of mitmproxy's forty addons only those that a reverse proxy
needs, because each of the others is asked at every hook of every request. With `web`, the
whole of mitmweb. Ends with an exit code; what a user can mend is one line on stderr.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import orjson
from mitmproxy import exceptions
from mitmproxy.addons import core, disable_h2c, next_layer, proxyserver, script, tlsconfig
from mitmproxy.master import Master
from mitmproxy.options import Options

from sglang_cached_addon.addon import SglangCached
from sglang_cached_addon.core.log_line import LogFormat
from sglang_cached_addon.core.printable import MAX_LINE, printable
from sglang_cached_addon.proxy import desk, output
from sglang_cached_addon.proxy.checks import StartError, check, check_port, normal_url
from sglang_cached_addon.proxy.lifetime import Lifetime
from sglang_cached_addon.proxy.start import Start
from sglang_cached_addon.wire import descriptors

WEB_COLUMNS = ["icon", "path", "comment", "method", "status", "size", "time"]
"""What mitmweb's list of flows shows: mitmproxy's own choice has no comments, which say what the
cache did."""


def run(start: Start) -> int:
    """Serves until SIGINT or SIGTERM; the process's exit code."""
    settle = output.guard()
    # A terminal that goes away takes its readers with it, but not the cache.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    descriptors.raise_limit()
    try:
        url = normal_url(start.sglang_url)
        check(start)
        return asyncio.run(_serve(start, url))
    except StartError as e:
        print(f"sglang-cached: {e}", file=sys.stderr)
        return 1
    finally:
        settle()


async def _serve(start: Start, url: str) -> int:
    _set_up_logging(start.options.get("sglang_log_format") == LogFormat.JSON)
    addon = SglangCached(announce=False)
    options = Options(
        mode=[f"reverse:{url}"],
        listen_host=start.host,
        listen_port=start.port,
        ssl_insecure=start.insecure,
    )
    master = _web_master(options, addon) if start.web else _lean_master(options, addon, url, start)
    lifetime = Lifetime(master, addon, start)
    master.addons.add(lifetime)
    _set(options, start)
    if start.web:
        check_port(options.web_host, options.web_port, "--set web_port=N")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lifetime.stop)
    return await lifetime.run()


def _set(options: Options, start: Start) -> None:
    """Hands the user's options to mitmproxy; raises `StartError` naming the one it refuses."""
    try:
        options.update(**start.options, connection_strategy="lazy")
        for name, specs in _by_name(start.sets).items():
            try:
                options.set(*specs, defer=bool(start.scripts))
            except exceptions.OptionsError as e:
                raise StartError(f"--set {name}: {e}") from None
        if start.scripts:
            options.update(scripts=[str(Path(path).expanduser()) for path in start.scripts])
    except exceptions.OptionsError as e:
        raise StartError(str(e)) from None


def _by_name(specs: Iterable[str]) -> dict[str, list[str]]:
    """NAME=VALUE, by name: the values of a list come together, or each would replace the former."""
    found: dict[str, list[str]] = {}
    for spec in specs:
        found.setdefault(spec.partition("=")[0], []).append(spec)
    return found


def _lean_master(options: Options, addon: SglangCached, url: str, start: Start) -> Master:
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
    options.update(web_open_browser=False, web_columns=WEB_COLUMNS)
    master.addons.add(addon)
    return master


class _Lines(logging.Formatter):
    """Nothing that was sent to the proxy can look like a line of its log."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n    ".join(printable(line, MAX_LINE) for line in lines)


class _Json(_Lines):
    """One object a line: those about requests are, and others are put into one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == desk.requests.name:
            return text
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": text}
        return orjson.dumps(line).decode()


def _set_up_logging(is_json: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((_Json if is_json else _Lines)("%(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    # Ours, and what the user's scripts say; of mitmproxy only what goes wrong.
    for name in ("sglang_cached_addon", "__mitmproxy_script__"):
        logging.getLogger(name).setLevel(logging.INFO)
