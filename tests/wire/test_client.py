"""The client of the upstream, against servers that are scripted byte by byte."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from sglang_cached_addon.wire import client as client_module
from sglang_cached_addon.wire.client import Answer, Ask, Broken, Client, Greet, Unreachable

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


def against(serve: Serve, case: Case, *, url: str = "http://127.0.0.1", **options: Any) -> None:
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
            server = await asyncio.start_server(handle, "::1" if "[" in url else "127.0.0.1", 0)
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


FRAMES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
    "chunks and trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;a=b\r\nabc\r\n3 \r\ndef\r\n0\r\nA: 1\r\n\r\n",
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


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "a cut body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    "cut chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "any two bytes end a chunk": CHUNKED + b"3\r\nabcXX3\r\ndef\r\n0\r\n\r\n",
    "a long chunk line": CHUNKED + b"3;" + b"x" * 2000 + b"\r\nabc\r\n0\r\n\r\n",
    "an endless chunk line": CHUNKED + b"3;" + b"x" * 200_000,
    "endless trailers": CHUNKED + b"0\r\n" + b"A: 1\r\n" * 40_000,
    "an endless interim head": b"HTTP/1.1 103 A\r\n" + b"A: 1\r\n" * 40_000,
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


def test_hung_up_on_the_request_with_others_idle() -> None:
    """A request that upstream dies of would be sent on each kept connection in turn."""
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
        await asyncio.gather(*(client.ask(*ASKED) for _ in range(3)))
        assert len(client._idle) == 3
        assert (await client.ask(*ASKED)).body == b"ok"
        assert len(received) == 5

    against(serve, case)


def test_idle_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection would be used at the moment at which upstream closes it."""
    monkeypatch.setattr(client_module, "IDLE_SECONDS", 0.0)

    async def case(client: Client) -> None:
        answers = [await client.ask(*ASKED) for _ in range(2)]
        assert len({answer.connection for answer in answers}) == 2

    against(saying(OK, OK), case)


def test_left_by_a_burst() -> None:
    """Connections that upstream has closed would be held for ever below the one in use."""
    counts, hang_up, last = itertools.count(1), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        is_last = next(counts) == 3
        if is_last:
            await last.wait()
        writer.write(OK)
        await writer.drain()
        await (request(reader) if is_last else hang_up.wait())

    async def case(client: Client) -> None:
        asking = [asyncio.ensure_future(client.ask(*ASKED)) for _ in range(3)]
        while len(client._idle) < 2:
            await asyncio.sleep(0)
        hang_up.set()
        while any(idle.is_usable for idle in client._idle):  # until it has heard of it
            await asyncio.sleep(0)
        last.set()
        numbers = {answer.connection for answer in await asyncio.gather(*asking)}
        assert len(numbers) == 3
        assert len(client._idle) == 1

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
        async with asyncio.timeout(10):
            with pytest.raises(Unreachable, match="refused"):
                await Client(f"http://127.0.0.1:{port}").ask(*ASKED)

    asyncio.run(run())


BAD_TLS = {"no TLS": (OK, "TLS failed"), "hung up": (b"", ".")}


@pytest.mark.parametrize(("answer", "reason"), BAD_TLS.values(), ids=BAD_TLS)
def test_no_tls(answer: bytes, reason: str) -> None:
    """An upstream without TLS would be a traceback, or fail without a reason."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)

    async def case(client: Client) -> None:
        with pytest.raises(Unreachable, match=reason):
            await client.ask(*ASKED)

    against(serve, case, url="https://127.0.0.1")


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
        assert not client._idle
        await left.wait()

    against(serve, case)


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


@pytest.mark.parametrize("case", GREETINGS)
def test_greeting_that_fails(case: str) -> None:
    """Whatever comes of it, who waits for it is told, and the connection is not used again."""
    greet, answer, said = GREETINGS[case]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await request(reader)
        writer.write(answer)
        assert await reader.read(1) == b""

    async def check(client: Client) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, found: None)
        async with client.open(*ASKED) as response:
            assert [piece async for piece in response.pieces()] == [b"ok"]
        assert await response.greeting == said
        assert (await client.ask(*ASKED)).connection != response.connection

    against(serve, check, greet=greet)


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


@pytest.mark.parametrize(("url", "host"), HOSTS.items(), ids=HOSTS)
def test_host(url: str, host: bytes) -> None:
    """Upstream would be asked for a host that it is not, or told a password."""
    sent = Client(url)._request("GET", "/", [(b"Host", b"elsewhere")], b"")
    assert [value for name, value in sent.headers if name == b"host"] == [host]


def test_host_that_is_kept() -> None:
    """A virtual host would not be found by the name that its client has used."""
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
    """An upstream at a numeric IPv6 address would not be found."""

    async def case(client: Client) -> None:
        assert (await client.ask(*ASKED)).body == b"ok"

    against(saying(OK), case, url="http://[::1]")


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
        assert not client._idle
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


UNSENDABLE: dict[str, tuple[str, list[tuple[bytes, bytes]]]] = {
    "a field of two lines": ("/", [(b"X", b"a\nb")]),
    "a space in the path": ("/a b", []),
    "a letter that is not ASCII": ("/\u00e9", []),
}


@pytest.mark.parametrize(("path", "fields"), UNSENDABLE.values(), ids=UNSENDABLE)
def test_request_that_cannot_be_sent(path: str, fields: list[tuple[bytes, bytes]]) -> None:
    """An odd request would be a traceback."""

    async def case(client: Client) -> None:
        with pytest.raises(Broken, match="cannot be sent"):
            await client.ask("POST", path, fields, b"")

    against(saying(OK), case)


def test_close() -> None:
    """What is given back after the end would be kept for ever."""

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            client.close()
            assert b"".join([piece async for piece in response.pieces()]) == b"ok"
        assert not client._idle

    against(saying(OK), case)
