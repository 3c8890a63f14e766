"""One connection to upstream."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from sglang_cached_addon.wire.client import Client
from tests.wire.serving import ASKED, against, request, saying
from tests.wire.test_responses import OK


def test_kept_connection() -> None:
    """Each request would pay for a connection of its own."""

    async def case(client: Client) -> None:
        answers = [await client.ask(*ASKED) for _ in range(3)]
        assert len({answer.connection for answer in answers}) == 1

    against(saying(OK, OK, OK), case)


def test_connection_that_is_to_be_closed() -> None:
    """A request would be sent to a server that no longer listens."""
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"

    async def case(client: Client) -> None:
        answers = [await client.ask(*ASKED) for _ in range(2)]
        assert len({answer.connection for answer in answers}) == 2

    against(saying(closing), case)


def test_bytes_that_belong_to_no_request() -> None:
    """An answer that nobody asked for would be taken for the next one's."""
    sent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await writer.drain()
        if not sent.is_set():
            await asyncio.sleep(0)
            writer.write(OK.replace(b"ok", b"no"))
            await writer.drain()
            sent.set()
        await request(reader)

    async def case(client: Client) -> None:
        await client.ask(*ASKED)
        await sent.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert (await client.ask(*ASKED)).body == b"ok"

    against(serve, case)


def test_cancelled() -> None:
    """The GPU would work on for a client that has left."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        asked.set()
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        left.set()

    async def case(client: Client) -> None:
        asking = asyncio.ensure_future(client.ask(*ASKED))
        await asked.wait()
        asking.cancel()
        await left.wait()
        with pytest.raises(asyncio.CancelledError):
            await asking

    against(serve, case)


def test_left_unread() -> None:
    """The rest of an answer that nobody read would be taken for the next one's."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        left.set()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            assert response.status == 200
        await left.wait()

    against(serve, case)


def test_pieces_as_they_come() -> None:
    """A stream would be held back until it is whole; one that is left would run on."""
    go, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await go.wait()
        writer.write(b"3\r\ndef\r\n")
        with suppress(ConnectionError):
            assert await reader.read(1) == b""
        left.set()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            pieces = response.pieces()
            assert await anext(pieces) == b"abc"
            go.set()
            assert await anext(pieces) == b"def"
        await left.wait()

    against(serve, case)


def test_early_answer_of_who_reads_no_more() -> None:
    """A refusal would wait for ever for a body that upstream does not read; its connection would
    carry the rest of that body before the next request."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        await done.wait()

    async def case(client: Client) -> None:
        got = await client.ask("POST", "/generate", [], b"x" * 32_000_000)
        assert (got.status, got.body) == (413, b"no")
        assert (await client.ask("POST", "/generate", [], b"x")).connection != got.connection
        done.set()

    against(serve, case)


def test_early_answer() -> None:
    """A refusal that comes before a large body was sent would be lost."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        while await reader.read(1 << 20):  # to its end: a reset would take the answer away
            pass

    async def case(client: Client) -> None:
        got = await client.ask("POST", "/generate", [], b"x" * 8_000_000)
        assert (got.status, got.body) == (401, b"no")

    against(serve, case)


def test_no_body() -> None:
    """An answer that has none would be waited for."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    async def case(client: Client) -> None:
        assert (await client.ask("HEAD", "/", [])).body == b""
        assert (await client.ask(*ASKED)).body == b"ok"

    against(saying(head, OK), case)
