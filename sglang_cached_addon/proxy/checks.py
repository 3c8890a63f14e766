"""What of the arguments of `start` can be refused before anything runs.

A mistake is one line that says what is wrong and what to do: mitmproxy would fail later, and less
clearly. Changes nothing.
"""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

from mitmproxy.proxy.mode_specs import ProxyMode

from sglang_cached_addon.proxy.start import Start
from sglang_cached_addon.wire.location import PORTS


class StartError(Exception):
    """The proxy cannot start; the message says why and what to do."""


def check(start: Start) -> None:
    """Raises `StartError` for what cannot be started."""
    for path in start.scripts:
        check_script(path)
    check_port(start.host, start.port, "--port")
    if start.drain_accept > start.drain:
        raise StartError("--drain-accept: must not be more than --drain")


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
    port = PORTS[parts.scheme] if port is None else port
    normal = f"{parts.scheme}://{host}:{port}"
    try:
        ProxyMode.parse(f"reverse:{normal}")
    except ValueError as e:
        raise StartError(f"--sglang-url {url}: {e}") from None
    return normal


def check_script(path: str) -> None:
    """Raises `StartError` where there is no mitmproxy script."""
    try:
        is_there = Path(path).expanduser().is_file()
    except RuntimeError as e:
        raise StartError(f"-s {path}: {e}") from None
    if not is_there:
        raise StartError(f"-s {path}: no such file")


def check_port(host: str, port: int, option: str) -> None:
    """Raises `StartError` where nobody can listen."""
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
