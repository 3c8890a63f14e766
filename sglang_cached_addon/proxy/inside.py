"""The inside of mitmproxy and asyncio that is relied on: what no documentation promises.

Other modules use what is public, and what is here. `selfcheck` tries it at start, and says what is
to be left alone.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

from h11._readers import ChunkedReader as ChunkedReader
from mitmproxy import ctx
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.connection import Client
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers.http import HttpLayer, _base, _events, _http1
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.server import ConnectionHandler, ConnectionIO

# mitmproxy's HTTP layer

http_base = _base
http_events = _events
http1 = _http1


def http1_server(http: HttpLayer, client: Client) -> http1.Http1Server | None:
    """What reads the requests of an HTTP/1 client; None for another kind of client."""
    server = http.connections.get(client)
    return server if isinstance(server, http1.Http1Server) else None


def is_idle(http: HttpLayer, client: Client) -> bool:
    """Whether mitmproxy's HTTP layer is between two requests of an HTTP/1 client."""
    server = http1_server(http, client)
    return (
        server is not None
        and not http.streams
        and not server.buf
        and server.state == server.read_headers
    )


def is_pipe(http: HttpLayer, client: Client) -> bool:
    """Whether mitmproxy no longer reads HTTP/1 from a client."""
    server = http1_server(http, client)
    return server is None or server.state == server.passthrough


def queued(http: HttpLayer) -> int:
    """How many events wait in mitmproxy's HTTP layer, for a hook or for a connection to upstream:
    each piece of a body is one."""
    return sum(len(stream._paused_event_queue) for stream in http.streams.values())


def read_with(client: layer.Layer, reader: type[http1.Http1Client]) -> None:
    """Lets a class of ours read what upstream answers on a connection that has just been made."""
    if type(client) is http1.Http1Client:
        client.__class__ = reader
        client.state = client.read_headers


# A client's connection


def proxyserver() -> Proxyserver | None:
    """mitmproxy's addon that listens, if there is one."""
    found: Proxyserver | None = ctx.master.addons.get("proxyserver")
    return found


def handler_of(client: Client) -> ConnectionHandler | None:
    """What serves a client's connection."""
    server = proxyserver()
    return server.connections.get(client.id) if server else None


def end_of(handler: ConnectionHandler) -> ConnectionIO:
    """Where a client's bytes come from and go to."""
    return handler.transports[handler.client]


def watch(handler: ConnectionHandler, is_over: Callable[[], Awaitable[object]]) -> None:
    """Takes the place of mitmproxy's watchdog at a connection, which has its eye on it already: it
    is only told what to do when its time has come. A client is hung up when `is_over` returns."""
    end = handler.on_timeout

    async def when_it_is_time() -> None:
        await is_over()
        await end()

    handler.timeout_watchdog.callback = when_it_is_time


def unread(stream: asyncio.StreamReader) -> int:
    """Bytes that have come and were not read."""
    return len(stream._buffer)  # type: ignore[attr-defined]


# Where clients are let in


def servers_of(instance: ServerInstance[Any]) -> list[asyncio.Server]:
    """What listens for one of mitmproxy's modes."""
    return [server for server in cast(Any, instance)._servers if isinstance(server, asyncio.Server)]


def take_sockets(server: asyncio.Server, loop: asyncio.AbstractEventLoop) -> list[socket.socket]:
    """Takes a server's sockets over: it lets nobody in any more."""
    sockets = [end.dup() for end in server.sockets]
    for end in server.sockets:
        loop.remove_reader(end.fileno())
    return sockets


# What shows flows


def remove_view(view: Any) -> None:
    """Takes a content view away, if that can be done: mitmproxy 12 has no word for it."""
    from mitmproxy import contentviews  # only those that show flows have imported it

    views: Any = contentviews
    registry = getattr(views, "registry", None)
    if registry is None:
        views.remove(view)
    else:
        getattr(registry, "_by_name", {}).pop(view.name.lower(), None)
