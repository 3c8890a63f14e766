"""Servers that say what a test tells them to, and what is needed to ask them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from inspect import Signature, signature
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from sglang_cached_addon import upstream as module
from sglang_cached_addon.core import admission
from sglang_cached_addon.core.admission import Asker, Probe
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.core.updates import Change
from sglang_cached_addon.upstream import (
    INTERVAL_SECONDS,
    Upstream,
    confirming,
    gate,
    inquiry,
    single,
)
from sglang_cached_addon.upstream import asking as asking_module
from sglang_cached_addon.wire.connection import Headers

Test = Callable[..., None]
AsyncTest = Callable[..., Coroutine[Any, Any, None]]

SECONDS = 60
"""No test takes longer, whatever it waits for."""

ROUTE = ("POST", "/generate")
PROBE = b'{"probe":true}'
"""The smallest call, which these servers answer by themselves."""
INFO = {"model_path": "m", "served_model_name": "m", "weight_version": "1"}
SERVER = {"random_seed": 1, "version": "0.5", "api_key": "very-secret"}
MODELS = {"object": "list", "data": [{"id": "m", "created": 1}]}

SAID = ["/model_info", "/server_info"]
"""What is asked where upstream is SGLang."""

ANOTHER = {**SERVER, "random_seed": 2}
"""What another process says."""


# A server that is told what to say


class Asked:
    """One request, whose answer the test gives."""

    def __init__(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        connection: int,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.connection = connection
        self._writer = writer
        self.is_answered = asyncio.Event()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def answer(self, status: int, said: Any = b"", kind: str = "application/json") -> None:
        body = said if isinstance(said, bytes) else orjson.dumps(said)
        self._writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status, kind.encode(), len(body), body)
        )
        self.is_answered.set()

    def begin(self) -> None:
        """The head of a stream."""
        self._writer.write(
            b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    def send(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        self.is_answered.set()

    def cut(self) -> None:
        self._writer.transport.abort()
        self.is_answered.set()

    @property
    def is_left(self) -> bool:
        """Whether the client has hung up."""
        return self._writer.transport.is_closing()


@dataclass
class Script:
    """What a server says, and what it was asked."""

    says: dict[str, tuple[int, Any]] = field(
        default_factory=lambda: {"/model_info": (200, INFO), "/server_info": (200, SERVER)}
    )
    """By path; 404 for the others. Sampling routes are answered by the test."""
    turns: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    """By path: what it says once instead, one after the other."""
    keys: set[str] | None = None
    """Credentials that are accepted; None: anybody may ask."""
    refused: dict[str, int] = field(default_factory=dict)
    """What it says to credentials instead of a 401."""
    open_paths: tuple[str, ...] = ()
    """Paths for which none is wanted."""
    probed: int = 200
    """What a probe is answered with, where its key is accepted."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Those of the samples that it gives."""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    calls: asyncio.Queue[Asked] = field(default_factory=asyncio.Queue)
    """Requests that wait for the test to answer them."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    held: tuple[str, ...] = ()
    """The paths that `may_answer` is for, whose answers are as they were when they were asked for;
    all, where there are none."""
    may_probe: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self.may_answer.set()
        self.may_probe.set()

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    async def start(self) -> None:
        port = urlsplit(self.url).port or 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        if self._server:
            self._server.close()
        self.hang_up()

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self._writers.add(writer)
        with suppress(OSError, EOFError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path, _ = head[0].split()
                fields = (line.partition(": ") for line in head[1:-2])
                headers = {name.lower(): value for name, _, value in fields}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(method, path, headers, body, number, writer)
                self.asked.append(asked)
                said = self.says.get(path)
                if not self.held or path in self.held:
                    await self.may_answer.wait()
                if path not in self.held:
                    said = self.says.get(path)
                if turns := self.turns.get(path):
                    said = turns.pop(0)
                key = headers.get("authorization")
                if self.keys is not None and key not in self.keys and path not in self.open_paths:
                    asked.answer(self.refused.get(key or "", 401), {"error": "Unauthorized"})
                elif said:
                    asked.answer(*said)
                elif body == PROBE:
                    await self.may_probe.wait()
                    asked.answer(self.probed, {})
                elif method == "POST":
                    self.calls.put_nowait(asked)
                    gone = asyncio.ensure_future(reader.read(1))
                    done = asyncio.ensure_future(asked.is_answered.wait())
                    await asyncio.wait([gone, done], return_when=asyncio.FIRST_COMPLETED)
                    done.cancel()
                    if gone.done():
                        break
                    gone.cancel()
                    await asyncio.wait([gone])
                else:
                    asked.answer(404, {})
        self._writers.discard(writer)
        writer.transport.abort()


@asynccontextmanager
async def serving(**kwargs: Any) -> AsyncIterator[Script]:
    script = Script(**kwargs)
    await script.start()
    try:
        yield script
    finally:
        script.stop()
        await settled()


async def settled(turns: int = 20) -> None:
    """Lets every task that can go on go on."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any]) -> Any:
    """Waits for a condition, not for ever."""
    async with asyncio.timeout(SECONDS):
        while not (found := condition()):
            await asyncio.sleep(0.001)
    return found


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a test to its end, and not for ever."""

    async def within() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(within())


def bounded(test: AsyncTest) -> Test:
    """Makes a test of a coroutine function. It has its own event loop, and an end."""

    @wraps(test)
    def runs(**fixtures: Any) -> None:
        run(lambda: test(**fixtures))

    return runs


def entering(
    make: Callable[[], AbstractAsyncContextManager[Any]], *names: str
) -> Callable[[AsyncTest], Test]:
    """As `bounded`, in a context that gives these arguments of the test."""

    def decorate(test: AsyncTest) -> Test:
        @wraps(test)
        async def entered(**fixtures: Any) -> None:
            async with make() as given:
                values = given if len(names) > 1 else (given,)
                await test(**dict(zip(names, values, strict=True)), **fixtures)

        parameters = signature(test).parameters.values()
        fixtures = [parameter for parameter in parameters if parameter.name not in names]
        entered.__signature__ = Signature(fixtures)  # type: ignore[attr-defined]
        return bounded(entered)

    return decorate


def scripted(interval: float = INTERVAL_SECONDS, **kwargs: Any) -> Callable[[AsyncTest], Test]:
    """A test with a server that says what it is told, and an upstream that asks it."""

    @asynccontextmanager
    async def both() -> AsyncIterator[tuple[Script, Upstream]]:
        async with serving(**kwargs) as script, asking(script.url, interval=interval) as upstream:
            yield script, upstream

    return entering(both, "script", "upstream")


class Kept:
    """Where the state goes, for as long as a test."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}

    is_rejected = False

    def load(self) -> dict[str, Any]:
        return self.document

    def reject(self, why: str) -> None:
        self.is_rejected, self.document = True, {}

    def save(self, document: dict[str, Any]) -> None:
        self.document = json.loads(json.dumps(document))


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._readings = 0

    def monotonic(self) -> float:
        self._readings += 1
        return self.now

    async def seen_later(self, seconds: float) -> None:
        """Lets time pass, and returns when who looks now and then has seen that. Whatever was under
        way, and looks at the clock at its end, is over before."""
        readings = -1
        while readings != self._readings:
            readings = self._readings
            await asyncio.sleep(0.02)
        self.now += seconds
        await until(lambda: self._readings > readings)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for timed in (module, asking_module, confirming, gate, inquiry, single):
        monkeypatch.setattr(timed, "time", clock)
    return clock


@asynccontextmanager
async def asking(url: str, kept: Kept | None = None, **kwargs: Any) -> AsyncIterator[Upstream]:
    """An upstream that is hung up on at the end."""
    upstream = Upstream(url, kept or Kept(), probes=lambda asker: (Probe(PROBE),), **kwargs)
    try:
        yield upstream
    finally:
        upstream.close()
        await settled()


def credential_headers(key: str | None) -> Headers:
    """The header fields of a client's credential."""
    return ((b"authorization", key.encode()),) if key else ()


def credential(key: str | None) -> bytes:
    return admission.credential(dict(credential_headers(key)))


def asker(key: str | None = None, model: str = "", path: str = "/generate") -> Asker:
    return Asker(credential(key), "POST", path, model)


def admits(upstream: Upstream, key: str | None = None, model: str = "") -> bool:
    """Whether a client is given what is stored, without anybody being asked."""
    return upstream.admits(asker(key, model), module.time.monotonic())


async def refusal(upstream: Upstream, key: str | None = None, model: str = "") -> Reason | None:
    """Why a client is not let in, as its next call learns it."""
    if admits(upstream, key, model):
        return None
    return await upstream.admit(asker(key, model), credential_headers(key))


async def greeting(upstream: Upstream) -> asyncio.Future[Any]:
    """A call that is answered in full, and what upstream then says of itself on that connection."""
    async with upstream.client.open("POST", "/generate", (), PROBE) as response:
        async for _ in response.pieces():
            pass
    return response.greeting


def infos(script: Script) -> list[str]:
    """The questions about the model, by path."""
    return [path for path in script.paths if path not in ("/generate", "/v1/chat/completions")]


def probes(script: Script) -> list[str | None]:
    """The credentials with which a probe has come."""
    return [a.headers.get("authorization") for a in script.asked if a.body == PROBE]


async def changed(
    upstream: Upstream,
    status: int | None = 200,
    change: Change = Change.MODEL,
    adapter: str | None = None,
) -> None:
    """A request that changes something, from its head to its end."""
    update = upstream.change(change, adapter)
    await update.announced
    update.sent()
    update.ended(status)
