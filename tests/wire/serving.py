"""Servers that are scripted byte by byte, for a client to ask."""

from __future__ import annotations

import asyncio
import fcntl
import ssl
import termios
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from sglang_cached_addon.wire.client import Client

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Case = Callable[[Client], Awaitable[None]]

ASKED = ("POST", "/generate", [(b"Content-Type", b"application/json")], b'{"text":"a"}')


async def request(reader: asyncio.StreamReader) -> bytes:
    """A whole request, or what there is of one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as e:
        return e.partial
    length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")


async def until_left(reader: asyncio.StreamReader) -> None:
    """Waits until the client hangs up, which says nothing more."""
    with suppress(ConnectionError):
        assert await reader.read(1) == b""


async def arrived(writer: asyncio.StreamWriter) -> None:
    """Waits until the client, which is in the same loop, has read all that was written."""
    await writer.drain()
    unread = b"unread"
    while any(unread):  # nobody has acknowledged so many bytes
        unread = fcntl.ioctl(writer.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)


def against(
    serve: Serve,
    case: Case,
    *,
    url: str = "http://127.0.0.1",
    served_tls: ssl.SSLContext | None = None,
    **options: Any,
) -> None:
    """Runs a case against a server, in bounded time."""

    async def run() -> None:
        handlers: set[asyncio.Task[Any]] = set()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            handlers.add(task)
            try:
                await serve(reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        async with asyncio.timeout(60):
            host = "::1" if "[" in url else "127.0.0.1"
            server = await asyncio.start_server(handle, host, 0, ssl=served_tls)
            client = Client(f"{url}:{server.sockets[0].getsockname()[1]}", **options)
            try:
                await case(client)
            finally:
                client.close()
                server.close()
                for task in handlers:
                    task.cancel()
                await asyncio.gather(*handlers, return_exceptions=True)

    asyncio.run(run())


def saying(*answers: bytes, received: list[bytes] | None = None) -> Serve:
    """Answers request by request, on one connection, and hangs up then."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            got = await request(reader)
            if not got:
                return
            if received is not None:
                received.append(got)
            writer.write(answer)
            await writer.drain()

    return serve


def until_gone(left: asyncio.Event, *answers: bytes, hangs_up: bool = False) -> Serve:
    """As `saying`, but stays until the client hangs up, and notes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*answers)(reader, writer)
        if hangs_up:
            writer.write_eof()
        await until_left(reader)
        left.set()

    return serve
