"""What is used of the inside of mitmproxy and asyncio, as it is here."""

from __future__ import annotations

import asyncio
import socket

from sglang_cached_addon.proxy import inside


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
