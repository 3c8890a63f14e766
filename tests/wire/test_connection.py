"""One connection to upstream."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from sglang_cached_addon.wire.client import Ask, Client
from sglang_cached_addon.wire.connection import MAX_HELD, Broken
from tests.tables import each
from tests.wire.serving import ASKED, against, arrived, request, saying, until_gone, until_left
from tests.wire.test_responses import OK

STRAY = OK.replace(b"ok", b"no")


def test_kept_connection() -> None:
    """A connection carries one request after the other."""

    async def case(client: Client) -> None:
        answers = [await client.ask(*ASKED) for _ in range(3)]
        assert len({answer.connection for answer in answers}) == 1

    against(saying(OK, OK, OK), case)


def test_connection_that_is_to_be_closed() -> None:
    """A connection that the server closes is not used again."""
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"

    async def case(client: Client) -> None:
        answers = [await client.ask(*ASKED) for _ in range(2)]
        assert len({answer.connection for answer in answers}) == 2

    against(saying(closing), case)


def test_bytes_that_belong_to_no_request() -> None:
    """Bytes that belong to no request end their connection, with an answer or while it is idle."""

    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(OK + STRAY)(reader, writer)
        await reader.read(1)

    async def case(client: Client) -> None:
        assert [(await client.ask(*ASKED)).body for _ in range(2)] == [b"ok", b"ok"]

    against(together, case)
    answered, sent = asyncio.Event(), asyncio.Event()

    async def apart(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(OK)(reader, writer)
        await answered.wait()
        if not sent.is_set():
            writer.write(STRAY)
            await arrived(writer)
            sent.set()
        await request(reader)

    async def idle(client: Client) -> None:
        first = await client.ask(*ASKED)
        answered.set()
        await sent.wait()
        second = await client.ask(*ASKED)
        assert (second.body, second.connection == first.connection) == (b"ok", False)

    against(apart, idle)


def test_bytes_between_two_questions() -> None:
    """A greeting does not take bytes that belong to no request for its next answer."""
    told, sent = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(OK, OK)(reader, writer)
        await told.wait()
        writer.write(STRAY)
        await arrived(writer)
        sent.set()
        await until_left(reader)

    async def greet(ask: Ask, former: object) -> bytes:
        assert (await ask("GET", "/", ())).body == b"ok"
        told.set()
        await sent.wait()
        return (await ask("GET", "/", ())).body

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            await response.whole()
        assert await response.greeting is None

    against(serve, case, greet=greet)


def test_cancelled() -> None:
    """Upstream is hung up on when its client leaves."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        asked.set()
        await until_left(reader)
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
    """Who leaves a body unread has the connection closed."""
    left = asyncio.Event()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            assert response.status == 200
        await left.wait()

    against(until_gone(left, OK), case)


def test_pieces_as_they_come() -> None:
    """Each piece of a stream is given as it comes, and who leaves it has it closed."""
    go, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await go.wait()
        writer.write(b"3\r\ndef\r\n")
        await until_left(reader)
        left.set()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            pieces = response.pieces()
            assert await anext(pieces) == b"abc"
            go.set()
            assert await anext(pieces) == b"def"
        await left.wait()

    against(serve, case)


FRAMED = {
    "length": (b"Content-Length: 6\r\n\r\nabc", b"def"),
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\ndef\r\n0\r\n\r\n"),
    "until it hangs up": (b"\r\nabc", b"def"),
}


def given(begin: bytes, rest: bytes) -> bytes:
    """The body that a client is given, if the rest and the end of the connection come while it
    deals with the first piece. Raises `Broken`."""
    got, taken, sent = [], asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + begin)
        await taken.wait()
        writer.write(rest)
        writer.close()
        await writer.wait_closed()
        sent.set()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            async for piece in response.pieces():
                got.append(piece)
                taken.set()
                await sent.wait()
                for _ in range(20):  # there is time for it to come
                    await asyncio.sleep(0)

    against(serve, case)
    return b"".join(got)


def test_rest_that_comes_meanwhile() -> None:
    """What comes while a piece is dealt with is given, and the end behind it is heard."""
    for name, (begin, rest) in FRAMED.items():
        assert given(begin, rest) == b"abcdef", name
        if name != "until it hangs up":
            with pytest.raises(Broken, match="in the middle"):
                given(begin, rest[:2])


def test_slow_reader() -> None:
    """No more is held of a body than a bound, however slowly it is taken, and nothing is lost."""
    body = bytes(range(256)) * 32 * 1024

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            pieces = []
            async for piece in response.pieces():
                pieces.append(piece)
                for _ in range(20):  # there is time for more to come
                    await asyncio.sleep(0)
        assert max(map(len, pieces)) <= 2 * MAX_HELD
        assert b"".join(pieces) == body

    against(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body), case)


def test_end_of_a_slow_reader() -> None:
    """The end of a connection is noticed after a body that was not taken for a while."""
    left, size = asyncio.Event(), MAX_HELD + 1024
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            for _ in range(100):  # there is time for all of it to come
                await asyncio.sleep(0)
            assert len((await response.whole()).body) == size
        await left.wait()

    against(until_gone(left, answer, hangs_up=True), case)


@each("head", [b"", b"HTTP/1.1 200 OK\r\n\r\nsome"], ids=["at once", "later"])
def test_reset(head: bytes) -> None:
    """A connection that is reset is an error in the system's words, and not the end of a body."""
    begun = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(head)
        if head:
            await begun.wait()
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def case(client: Client) -> None:
        with pytest.raises(Broken, match="reset"):
            async with client.open(*ASKED) as response:
                async for _ in response.pieces():
                    begun.set()

    against(serve, case)


def test_early_answer_of_who_reads_no_more() -> None:
    """An answer that comes before the body was read is given, and its connection not used again."""
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
    """An answer that comes before a large body was sent is given."""

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
    """An answer to HEAD has no body, and its connection is used again."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"

    async def case(client: Client) -> None:
        assert (await client.ask("HEAD", "/", [])).body == b""
        assert (await client.ask(*ASKED)).body == b"ok"

    against(saying(head, OK), case)
