"""The client of the upstream."""

from __future__ import annotations

import asyncio
import itertools
import socket
from contextlib import suppress
from typing import Any

import pytest

from sglang_cached_addon.wire.client import Ask, Client, Greet, Unreachable
from sglang_cached_addon.wire.connection import Broken, WholeResponse
from tests.tables import each
from tests.wire.serving import ASKED, against, request, saying, until_gone
from tests.wire.test_responses import OK, REFUSED, WHOLE


def test_whole_answer() -> None:
    """An answer is given whole, whatever tells where it ends."""
    for name, (answer, _) in WHOLE.items():
        if name != "something behind it":

            async def case(client: Client, name: str = name) -> None:
                got = await client.ask(*ASKED)
                assert (got.status, got.body) == (200, b"abcdef"), name

            against(saying(answer), case)


def test_broken_answer() -> None:
    """What is cut, or is no HTTP, is not taken for an answer."""
    cut = {"nothing": b"", "half a head": OK[:20], "a cut body": OK[:-1]}
    for name, answer in {**cut, **REFUSED}.items():

        async def case(client: Client, name: str = name) -> None:
            with pytest.raises(Broken):
                pytest.fail(f"{name}: {await client.ask(*ASKED)}")

        against(saying(answer), case)


def test_hung_up_in_the_meantime() -> None:
    """A connection that upstream ends while it is idle is closed here at once, and costs no client
    its answer."""
    left = asyncio.Event()

    async def case(client: Client) -> None:
        first = await client.ask(*ASKED)
        await left.wait()
        second = await client.ask(*ASKED)
        assert (first.body, second.body) == (b"ok", b"ok")
        assert first.connection != second.connection

    against(until_gone(left, OK, hangs_up=True), case)


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


def test_hung_up_in_the_middle_of_an_answer() -> None:
    """A request that was answered in part is not sent once more: it may have generated."""
    received: list[bytes] = []

    async def case(client: Client) -> None:
        assert (await client.ask(*ASKED)).body == b"ok"
        with pytest.raises(Broken):
            await client.ask(*ASKED)
        assert len(received) == 2

    against(saying(OK, OK[:20], received=received), case)


def test_hung_up_on_the_request_with_others_idle() -> None:
    """A request that was not answered is sent once more, and not on another kept connection."""
    received: list[bytes] = []
    together = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await request(reader))
        if len(received) == 3:
            together.set()
        await together.wait()
        writer.write(OK)
        await writer.drain()
        if again := await request(reader):  # and hangs up on it
            received.append(again)

    async def case(client: Client) -> None:
        answers = await asyncio.gather(*(client.ask(*ASKED) for _ in range(3)))
        assert len({answer.connection for answer in answers}) == 3
        assert (await client.ask(*ASKED)).body == b"ok"
        assert len(received) == 5

    against(serve, case)


def test_idle_for_too_long() -> None:
    """A connection is not used when upstream may be about to close it, and is closed here."""
    left = asyncio.Event()

    async def case(client: Client) -> None:
        first = await client.ask(*ASKED)
        await left.wait()
        assert (await client.ask(*ASKED)).connection != first.connection

    against(until_gone(left, OK), case, idle_seconds=0.0)


def test_unreachable() -> None:
    """The error of a connection that is refused says so."""

    async def run() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with asyncio.timeout(60):
            with pytest.raises(Unreachable, match="refused"):
                await Client(f"http://127.0.0.1:{port}").ask(*ASKED)

    asyncio.run(run())


async def too_slow(ask: Ask, former: Any) -> str:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await ask("GET", "/model_info", ())
    return "slow"


async def broken(ask: Ask, former: Any) -> str:
    raise RuntimeError


GREETINGS: dict[str, tuple[Greet, bytes, str | None]] = {
    "no answer": (too_slow, b"", "slow"),
    "half an answer": (too_slow, OK[:-1], "slow"),
    "an error of ours": (broken, OK, None),
}


@each("case", GREETINGS)
def test_greeting_that_fails(case: str) -> None:
    """Whatever comes of it, who waits for it is told, and its connection is hung up."""
    greet, answer, said = GREETINGS[case]
    left = asyncio.Event()

    async def check(client: Client) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: None)
        async with client.open(*ASKED) as response:
            first = await response.whole()
        assert (first.body, await response.greeting) == (b"ok", said)
        await left.wait()
        assert (await client.ask(*ASKED)).connection != first.connection

    against(until_gone(left, OK, answer), check, greet=greet)


def test_fields() -> None:
    """Fields of a connection stay with it, and a client's own are passed on."""
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
        got: WholeResponse = await client.ask("POST", "/generate?a=b", mine, b"body")
        assert got.headers == ((b"X-Own", b"A"), (b"Content-Length", b"2"))

    against(saying(answer, received=received), case)
    line, *fields = received[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert line == b"POST /generate?a=b HTTP/1.1"
    names = {field.split(b":")[0].lower() for field in fields}
    assert names == {b"authorization", b"x-own", b"host", b"accept-encoding", b"content-length"}
    assert b"X-Own: \xc3\xa9" in fields
    assert b"Content-Length: 4" in fields
    assert b"Accept-Encoding: identity" in fields


HOSTS = {
    "http://h:8080": b"h:8080",
    "http://h": b"h",
    "http://h:80": b"h",
    "http://h:443": b"h:443",
    "https://h:443": b"h",
    "https://h:80": b"h:80",
    "http://[::1]:80": b"[::1]",
    "http://[::1]:81": b"[::1]:81",
    "http://user:secret@h:81": b"h:81",
}


def test_host() -> None:
    """Upstream is asked for the host that its URL names, without what else stands there."""
    for url, host in HOSTS.items():
        assert Client(url).authority == host, url


def test_host_that_is_kept() -> None:
    """The client's own host is passed on where that is asked for."""
    received: list[bytes] = []

    async def case(client: Client) -> None:
        await client.ask("GET", "/", [(b"host", b"elsewhere")])

    against(saying(OK, received=received), case, keeps_host=True)
    assert [f for f in received[0].split(b"\r\n") if f.startswith(b"Host:")] == [b"Host: elsewhere"]


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as s:
        s.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6() -> None:
    """An upstream at a numeric IPv6 address is found."""

    async def case(client: Client) -> None:
        assert (await client.ask(*ASKED)).body == b"ok"

    against(saying(OK), case, url="http://[::1]")


UNSENDABLE: dict[str, tuple[str, list[tuple[bytes, bytes]]]] = {
    "a field of two lines": ("/", [(b"X", b"a\nb")]),
    "a space in the path": ("/a b", []),
    "a letter that is not ASCII": ("/\u00e9", []),
}


def test_request_that_cannot_be_sent() -> None:
    """A request that cannot be written is an error of its own."""

    async def case(client: Client) -> None:
        for name, (path, fields) in UNSENDABLE.items():
            with pytest.raises(Broken, match="cannot be sent"):
                pytest.fail(f"{name}: {await client.ask('POST', path, fields, b'')}")

    against(saying(), case)


def test_close() -> None:
    """What is given back after the end is closed."""
    left = asyncio.Event()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            client.close()
            assert b"".join([piece async for piece in response.pieces()]) == b"ok"
        await left.wait()

    against(until_gone(left, OK), case)
