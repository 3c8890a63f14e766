"""What is used of the inside of mitmproxy and asyncio, as it is here."""

from __future__ import annotations

import asyncio
import socket

from mitmproxy.connection import Client
from mitmproxy.options import Options
from mitmproxy.proxy import events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode

from sglang_cached_addon.proxy import inside


def test_a_client_of_http1() -> None:
    """A layer is idle as long as nothing of a request has come, and no pipe meanwhile."""
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0.0)
    http = HttpLayer(Context(client, Options()), HTTPMode.transparent)
    assert inside.http1_server(http, client) is None
    assert inside.is_pipe(http, client)
    list(http.handle_event(events.Start()))
    assert (inside.is_idle(http, client), inside.is_pipe(http, client)) == (True, False)
    list(http.handle_event(events.DataReceived(client, b"POST / HTTP/1.1\r\n")))
    assert (inside.is_idle(http, client), inside.is_pipe(http, client)) == (False, False)


def test_sockets_are_taken_over() -> None:
    """A server whose sockets were taken over lets nobody in, and the sockets still listen."""

    async def run() -> None:
        served = []
        server = await asyncio.start_server(lambda *ends: served.append(ends), "127.0.0.1", 0)
        async with server:
            (end,) = inside.take_sockets(server, asyncio.get_running_loop())
            with end, socket.create_connection(server.sockets[0].getsockname(), 5):
                end.setblocking(True)
                end.accept()[0].close()
                await asyncio.sleep(0)
        assert not served

    asyncio.run(run())
