"""The client of the upstream, against servers that are scripted byte by byte."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from sglang_cached_addon.client import Answer, Broken, Client, Unreachable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Case = Callable[[Client], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ASKED = ("POST", "/generate", [(b"Content-Type", b"application/json")], b'{"text":"a"}')


async def request(reader: asyncio.StreamReader) -> bytes:
    """A whole request, or what there is of one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as e:
        return e.partial
    length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b"")


def against(serve: Serve, case: Case) -> None:
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

        async with asyncio.timeout(10):
            server = await asyncio.start_server(handle, "127.0.0.1", 0)
            client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
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


FRAMES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
    "until it hangs up": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdef",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nabcdef",
    "after another": b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
    b"abcdef",
}


@pytest.mark.parametrize("answer", FRAMES.values(), ids=FRAMES)
def test_whole_answer(answer: bytes) -> None:
    """An answer would be cut, or waited for, for ever."""

    async def case(client: Client) -> None:
        got = await client.ask(*ASKED)
        assert (got.status, got.body) == (200, b"abcdef")

    against(saying(answer), case)


BROKEN = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "a cut body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "cut chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "a huge head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_broken_answer(answer: bytes) -> None:
    """Half an answer would be taken for a whole one."""

    async def case(client: Client) -> None:
        with pytest.raises(Broken):
            await client.ask(*ASKED)

    against(saying(answer), case)


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


def test_hung_up_in_the_meantime() -> None:
    """A connection that upstream has closed while it was idle would cost a client its answer."""

    async def case(client: Client) -> None:
        first = await client.ask(*ASKED)
        second = await client.ask(*ASKED)
        assert (first.body, second.body) == (b"ok", b"ok")
        assert first.connection != second.connection

    against(saying(OK), case)


def test_hung_up_on_the_request() -> None:
    """What a kept connection did not answer at all is sent once more, and only once."""
    counts = itertools.count()
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The first connection takes two requests and answers one.
        first = next(counts) == 0
        await saying(OK, *([b""] if first else [OK]), received=received)(reader, writer)

    async def case(client: Client) -> None:
        assert [(await client.ask(*ASKED)).body for _ in range(2)] == [b"ok", b"ok"]
        assert len(received) == 3

    against(serve, case)


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


def test_unreachable() -> None:
    """A client would not learn why there is no answer."""

    async def run() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        with pytest.raises(Unreachable, match="refused"):
            await Client(f"http://127.0.0.1:{port}").ask(*ASKED)

    asyncio.run(run())


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


def test_fields() -> None:
    """Fields of one connection would be told to another; a client's own would be lost."""
    received: list[bytes] = []
    answer = (
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        b"X-Own: A\r\nContent-Length: 2\r\n\r\nok"
    )
    mine = [
        (b"host", b"elsewhere"),
        (b"Connection", b"close, x-mine"),
        (b"X-Mine", b"1"),
        (b"TE", b"trailers"),
        (b"Accept-Encoding", b"gzip"),
        (b"content-length", b"99"),
        (b"Authorization", b"Bearer k"),
        (b"X-Own", b"\xc3\xa9"),
    ]

    async def case(client: Client) -> None:
        got: Answer = await client.ask("POST", "/generate?a=b", mine, b"body")
        assert got.headers == ((b"X-Own", b"A"), (b"Content-Length", b"2"))

    against(saying(answer, received=received), case)
    line, *fields = received[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert line == b"POST /generate?a=b HTTP/1.1"
    names = {field.split(b":")[0].lower() for field in fields}
    assert names == {b"authorization", b"x-own", b"host", b"accept-encoding", b"content-length"}
    assert b"X-Own: \xc3\xa9" in fields
    assert b"Content-Length: 4" in fields
    assert b"Accept-Encoding: identity" in fields


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


def test_request_that_cannot_be_sent() -> None:
    """An odd field would be a traceback."""

    async def case(client: Client) -> None:
        with pytest.raises(Broken):
            await client.ask("POST", "/", [(b"X", b"a\nb")], b"")

    against(saying(OK), case)


def test_close() -> None:
    """What is given back after the end would be kept for ever."""

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            client.close()
            assert b"".join([piece async for piece in response.pieces()]) == b"ok"
        assert not client._idle

    against(saying(OK), case)
