"""Who is behind the URL, and whom it lets ask, against servers that say what they are told to."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from sglang_cached_addon import admission
from sglang_cached_addon import upstream as module
from sglang_cached_addon.client import Headers, tls_context
from sglang_cached_addon.identity import Change
from sglang_cached_addon.policy import Reason
from sglang_cached_addon.store.state import StateFile
from sglang_cached_addon.upstream import State, Upstream
from tests.certificates import self_signed

SECONDS = 20
"""No test takes longer, whatever it waits for."""

ROUTE = ("POST", "/generate")
INFO = {"model_path": "m", "served_model_name": "m", "weight_version": "1"}
SERVER = {"random_seed": 1, "version": "0.5", "api_key": "very-secret"}
MODELS = {"object": "list", "data": [{"id": "m", "created": 1}]}


def dead_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def saying(data: bytes) -> Iterator[str]:
    """The URL of a server that sends this to whoever connects, and hangs up if it is not empty."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(20)
                connection.recv(65536)
                if data:
                    connection.sendall(data)
                else:
                    connection.recv(65536)  # until the client has had enough

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


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
    keys: set[str] | None = None
    """Credentials that are accepted; None: anybody may ask."""
    open_paths: tuple[str, ...] = ()
    """Paths for which none is wanted."""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    calls: asyncio.Queue[Asked] = field(default_factory=asyncio.Queue)
    """Requests that wait for the test to answer them."""
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def __post_init__(self) -> None:
        self.may_answer.set()

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
                await self.may_answer.wait()
                key = headers.get("authorization")
                if self.keys is not None and key not in self.keys and path not in self.open_paths:
                    asked.answer(401, {"error": "Unauthorized"})
                elif path in self.says:
                    asked.answer(*self.says[path])
                elif method == "POST" and body != b"{":
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
                    asked.answer(400 if method == "POST" else 404, {})
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

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await test()

    asyncio.run(bounded())


class Kept:
    """Where the state goes, for as long as a test."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}

    def load(self) -> dict[str, Any]:
        return self.document

    def save(self, document: dict[str, Any]) -> None:
        self.document = json.loads(json.dumps(document))


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@asynccontextmanager
async def asking(url: str, kept: Kept | None = None, **kwargs: Any) -> AsyncIterator[Upstream]:
    """An upstream that is hung up on at the end."""
    upstream = Upstream(url, kept or Kept(), **kwargs)
    try:
        yield upstream
    finally:
        upstream.close()
        await settled()


def shown(key: str | None) -> Headers:
    """The header fields of a client's credential."""
    return ((b"authorization", key.encode()),) if key else ()


def credential(key: str | None) -> bytes:
    return admission.credential(dict(shown(key)))


async def refusal(upstream: Upstream, key: str | None = None) -> Reason | None:
    """Why a client is not let in, as a request of his would learn it."""
    if upstream.admits(credential(key), module.time.monotonic()):
        return None
    return await upstream.admit(shown(key), ROUTE)


# What it says of itself

OK, NONE, BROKEN, CLOSED = 200, 404, 500, 401
NO_MODEL, UNAUTHORIZED = Reason.NO_MODEL, Reason.UNAUTHORIZED

SAYS: dict[str, tuple[dict[str, tuple[int, Any]], Any, bool | None]] = {
    # what it says; why nobody is let in; whether it asks for keys
    "all": ({"/model_info": (OK, INFO), "/server_info": (OK, SERVER)}, None, False),
    "no server info": ({"/model_info": (OK, INFO)}, None, False),
    "server info closed": (
        {"/model_info": (OK, INFO), "/server_info": (CLOSED, {})}, None, False,
    ),
    "server info broken": (
        {"/model_info": (OK, INFO), "/server_info": (BROKEN, {})}, NO_MODEL, None,
    ),
    "older": ({"/get_model_info": (OK, INFO), "/get_server_info": (OK, SERVER)}, None, False),
    "only OpenAI's": ({"/v1/models": (OK, MODELS)}, None, False),
    "OpenAI's, closed": (
        {"/v1/models": (OK, MODELS), "/v1/chat/completions": (CLOSED, {}),
         "/generate": (CLOSED, {})}, UNAUTHORIZED, True,
    ),
    "nothing": ({}, NO_MODEL, None),
    "not JSON": ({"/model_info": (OK, b"hello")}, NO_MODEL, None),
    "no name": ({"/model_info": (OK, {"weight_version": "1"})}, NO_MODEL, None),
    "no models": ({"/v1/models": (OK, {"data": []})}, NO_MODEL, None),
    "401": ({"/model_info": (401, {})}, UNAUTHORIZED, True),
    "403": ({"/model_info": (403, {})}, UNAUTHORIZED, True),
    "500": ({"/model_info": (BROKEN, {})}, NO_MODEL, None),
    "503": ({"/model_info": (503, {})}, NO_MODEL, None),
    "elsewhere": ({"/model_info": (307, {})}, NO_MODEL, None),
}  # fmt: skip


@pytest.mark.parametrize("case", SAYS)
def test_what_it_says(case: str) -> None:
    """Hits would be given of nobody knows which model, or kept from those who may have them."""
    says, reason, asks_keys = SAYS[case]

    async def test() -> None:
        async with serving(says=says) as script, asking(script.url) as upstream:
            assert upstream.state is State.UNKNOWN
            assert not upstream.admits(b"", module.time.monotonic())
            assert await upstream.admit((), ROUTE) is reason
            assert upstream.admits(b"", module.time.monotonic()) is (reason is None)
            assert upstream.asks_keys is asks_keys
            assert upstream.state is State.UP
            is_known = reason is None or case == "OpenAI's, closed"
            assert (upstream.identity is not None) is is_known
            assert bool(upstream.fingerprint) is is_known
            confirmed = await upstream.confirm(upstream.turn, ())
            assert confirmed is (None if is_known else Reason.UNCONFIRMED)
            if upstream.identity:
                assert upstream.identity.model == "m"
                assert upstream.models == {upstream.fingerprint: "m"}

    run(test)


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that is not there, or says nothing, would be waited for, or believed in."""
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(module, "CONFIRM_SECONDS", 0.1)

    async def test() -> None:
        async with serving() as script:
            script.may_answer.clear()
            for url in (script.url, dead_url()):
                async with asking(url) as upstream:
                    assert await upstream.admit((), ROUTE) is Reason.NO_MODEL
                    assert upstream.state is State.DOWN
                    assert not upstream.admits(b"", module.time.monotonic())
                    assert await upstream.confirm(upstream.turn, ()) is Reason.UNCONFIRMED

    run(test)


KEYS = {
    # which of these is asked for in turn; who is let in
    "the bad one first": (["bad", None, "good"], ["good"]),
    "the good one first": (["good", "bad", None, "other"], ["good", "other"]),
    "nobody first": ([None, "good", None], ["good"]),
}


@pytest.mark.parametrize("case", KEYS)
@pytest.mark.parametrize("path", ["/model_info", "/v1/models"])
def test_keys(case: str, path: str) -> None:
    """A cache would open what is closed, or one's bad key be held against another."""
    order, welcome = KEYS[case]
    says = {path: (200, INFO if path == "/model_info" else MODELS)}

    async def test() -> None:
        async with (
            serving(says=says, keys={"good", "other"}) as script,
            asking(script.url) as upstream,
        ):
            for key in [*order, *order]:
                reason = None if key in welcome else Reason.UNAUTHORIZED
                assert await refusal(upstream, key) is reason, key
            assert upstream.asks_keys

    run(test)


def test_refused_on_a_route() -> None:
    """A server that tells anybody its model, but wants a key to generate, would be open to all."""

    async def test() -> None:
        open_paths = ("/model_info", "/server_info")
        async with (
            serving(keys={"good"}, open_paths=open_paths) as script,
            asking(script.url) as upstream,
        ):
            assert await refusal(upstream) is None
            upstream.heard(b"", 401, module.time.monotonic())
            asked = len(script.asked)
            for key in (None, "bad", "good", "bad", None):
                reason = None if key == "good" else Reason.UNAUTHORIZED
                assert await refusal(upstream, key) is reason, key
            assert {"/generate", "/v1/chat/completions"} >= set(script.paths[asked:])
            assert ("/generate", "good") in [
                (a.path, a.headers.get("authorization")) for a in script.asked
            ]
            assert {a.body for a in script.asked if a.method == "POST"} == {b"{"}

    run(test)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_later(status: int) -> None:
    """A key that was taken back would go on opening the cache."""

    async def test() -> None:
        async with serving(keys={"a", "b"}) as script, asking(script.url) as upstream:
            for key in "ab":
                assert await refusal(upstream, key) is None
            script.keys = {"b"}
            now = module.time.monotonic()
            upstream.heard(credential("a"), status, now)
            assert not upstream.admits(credential("a"), now)
            assert upstream.admits(credential("b"), now)
            assert await refusal(upstream, "a") is Reason.UNAUTHORIZED
            upstream.heard(credential("c"), 200, now)
            assert upstream.admits(credential("c"), now)

    run(test)


# How long it is believed


def test_fresh(clock: Clock) -> None:
    """Each hit would cost upstream a question, or tell of a model that is long gone."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=5.0) as upstream:
            assert await refusal(upstream) is None
            assert script.paths == ["/model_info", "/server_info"]
            clock.now += 2.9
            assert upstream.admits(b"", clock.now)
            await settled()
            assert len(script.asked) == 2
            clock.now += 0.2
            # Asked early, so that no hit has to wait.
            assert upstream.admits(b"", clock.now)
            await until(lambda: len(script.asked) == 4 and not upstream._learning)
            clock.now += 4.8
            assert upstream.admits(b"", clock.now)
            await until(lambda: len(script.asked) == 6 and not upstream._learning)
            clock.now += 5.0
            assert not upstream.admits(b"", clock.now)
            assert await refusal(upstream) is None
            assert {asked.connection for asked in script.asked} == {1}

    run(test)


def test_shared_question() -> None:
    """A crowd at the start would be a crowd of questions."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            script.may_answer.clear()
            asking_all = [asyncio.ensure_future(refusal(upstream)) for _ in range(100)]
            await until(lambda: script.asked)
            asking_all[0].cancel()  # who asked first leaves
            script.may_answer.set()
            assert set(await asyncio.gather(*asking_all[1:])) == {None}
            assert script.paths == ["/model_info", "/server_info"]
            assert asking_all[0].cancelled()

    run(test)


def test_refusal_is_not_shared() -> None:
    """One with a bad key who asks first would have all others refused."""

    async def test() -> None:
        async with serving(keys={"good"}) as script, asking(script.url) as upstream:
            script.may_answer.clear()
            keys = ["bad", "good", None, "good", "bad", "good"]
            asked = [asyncio.ensure_future(refusal(upstream, key)) for key in keys]
            await until(lambda: script.asked)
            script.may_answer.set()
            reasons = await asyncio.gather(*asked)
            assert reasons == [None if k == "good" else Reason.UNAUTHORIZED for k in keys]

    run(test)


def test_background(clock: Clock) -> None:
    """A server with a key would be asked without it, and be taken for changed, or for open."""

    async def test() -> None:
        async with serving(keys={"a", "b"}) as script, asking(script.url, interval=5.0) as upstream:
            for key in "ab":
                assert await refusal(upstream, key) is None
            asked = len(script.asked)
            clock.now += 4.0
            assert upstream.admits(credential("a"), clock.now)
            await until(lambda: len(script.asked) == asked + 2 and not upstream._learning)
            assert {a.headers.get("authorization") for a in script.asked[asked:]} == {"b"}
            script.keys = {"a"}
            asked = len(script.asked)
            clock.now += 4.0
            upstream.admits(credential("a"), clock.now)
            await until(lambda: len(script.asked) == asked + 1 and not upstream._learning)
            assert not upstream.admits(credential("b"), clock.now)
            assert not upstream.admits(b"", clock.now)
            assert upstream.asks_keys
            assert await refusal(upstream) is Reason.UNAUTHORIZED
            assert await refusal(upstream, "b") is Reason.UNAUTHORIZED
            assert await refusal(upstream, "a") is None

    run(test)


# Confirming


def test_confirm() -> None:
    """Each answer would cost two questions, or be stored under a model that it is not of."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            turn = upstream.turn
            assert await upstream.confirm(turn, ()) is None
            assert script.paths[2:] == ["/model_info"]
            assert {asked.connection for asked in script.asked} == {1}
            script.hang_up()
            await settled()
            asked = len(script.asked)
            assert await upstream.confirm(turn, ()) is None
            assert script.paths[asked:] == ["/model_info", "/model_info", "/server_info"]
            assert {asked.connection for asked in script.asked[asked:]} == {2}
            assert await upstream.confirm(turn, ()) is None
            assert len(script.asked) == asked + 4

    run(test)


def test_confirm_many() -> None:
    """Answers that come together would each have a question of their own."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            asked = len(script.asked)
            reasons = await asyncio.gather(
                *(upstream.confirm(upstream.turn, ()) for _ in range(99))
            )
            assert set(reasons) == {None}
            assert len(script.asked) == asked + 1

    run(test)


def test_confirm_is_asked_after() -> None:
    """An answer would be confirmed by a word from before it came."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            turn = upstream.turn
            script.may_answer.clear()
            first = asyncio.ensure_future(upstream.confirm(turn, ()))
            await until(lambda: len(script.asked) == 3)
            second = asyncio.ensure_future(upstream.confirm(turn, ()))
            await settled()
            script.may_answer.set()
            assert await first is None
            script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            assert await second is Reason.MODEL_CHANGED

    run(test)


OTHERS: dict[str, dict[str, Any]] = {
    "another model": {"/model_info": {**INFO, "model_path": "other", "served_model_name": "other"}},
    "other weights": {"/model_info": {**INFO, "weight_version": "2"}},
    "other settings": {"/server_info": {**SERVER, "dtype": "half"}},
    "a restart": {"/server_info": {**SERVER, "random_seed": 2}},
}


@pytest.mark.parametrize("case", OTHERS)
def test_another(case: str) -> None:
    """Answers of one model would be given for those of another."""

    async def test() -> None:
        async with serving() as script:
            entered: list[str] = []
            async with asking(
                script.url, entered=lambda upstream: entered.append(upstream.fingerprint)
            ) as upstream:
                assert await refusal(upstream) is None
                turn, before = upstream.turn, upstream.fingerprint
                script.says |= {path: (200, said) for path, said in OTHERS[case].items()}
                if "/server_info" in OTHERS[case]:
                    script.hang_up()  # as it does that has other settings
                    await settled()
                assert await upstream.confirm(turn, ()) is Reason.MODEL_CHANGED
                assert upstream.turn > turn
                # The weights of one that was only restarted are the same.
                assert (upstream.fingerprint == before) is (case == "a restart")
                assert entered[-2:] == [before, upstream.fingerprint]
                assert await upstream.confirm(upstream.turn, ()) is None

    run(test)


def test_restart_after_a_change() -> None:
    """What a process made of its weights would be believed of the next one."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            ended = await upstream.change(Change.MODEL, None)
            ended(200)
            assert await refusal(upstream) is None
            changed = upstream.fingerprint
            script.says["/server_info"] = (200, {**SERVER, "random_seed": 2})
            script.hang_up()
            await settled()
            assert await upstream.confirm(upstream.turn, ()) is Reason.MODEL_CHANGED
            assert upstream.fingerprint != changed

    run(test)


def test_down_and_up(clock: Clock) -> None:
    """While a server is down its answers could not be had; and its old keys would open the new."""

    async def test() -> None:
        async with serving(keys={"a", "c"}) as script, asking(script.url, interval=5.0) as upstream:
            for key in "ac":
                assert await refusal(upstream, key) is None
            turn = upstream.turn
            script.stop()
            await settled()
            for _ in range(3):
                clock.now += 100
                assert await refusal(upstream, "a") is None
                assert await refusal(upstream, "c") is None
                assert await refusal(upstream, "b") is Reason.UNAUTHORIZED
                assert await refusal(upstream) is Reason.UNAUTHORIZED
                assert upstream.state is State.DOWN
                assert await upstream.confirm(turn, ()) is Reason.UNCONFIRMED
            script.keys = {"b"}
            script.says["/server_info"] = (200, {**SERVER, "random_seed": 2})
            await script.start()
            clock.now += 5
            assert await refusal(upstream, "b") is None
            assert upstream.state is State.UP
            assert not upstream.admits(credential("c"), clock.now)
            for key in ("a", "c", None):
                assert await refusal(upstream, key) is Reason.UNAUTHORIZED
            assert await refusal(upstream, "b") is None

    run(test)


def test_watch(clock: Clock) -> None:
    """A model that changed during a generation would not be noticed until its end."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            asked, turn = len(script.asked), upstream.turn
            upstream.watch(())
            await until(lambda: len(script.asked) == asked + 1)
            upstream.watch(())
            await settled()
            assert len(script.asked) == asked + 1
            clock.now += 1
            script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
            upstream.watch(())
            await until(lambda: upstream.turn > turn)
            turn = upstream.turn
            script.says["/model_info"] = (200, INFO)
            upstream.doubt(())
            await until(lambda: upstream.turn > turn)

    run(test)


# Requests that change the model

ENDS: dict[int | None, bool] = {
    # what upstream says of a change; whether it is undone
    200: False, 400: False, 401: True, 403: True, 404: True, 405: True, 500: False, None: False,
}  # fmt: skip


@pytest.mark.parametrize("status", ENDS)
@pytest.mark.parametrize(
    ("change", "adapter"),
    [(Change.MODEL, None), (Change.ADAPTER, None), (Change.ADAPTER, "x")],
    ids=["model", "an adapter", "x"],
)
def test_change(change: Change, adapter: str | None, status: int | None) -> None:
    """Answers would outlive the weights they are of; or be lost to a request that did nothing."""

    def names(upstream: Upstream) -> tuple[str, str]:
        return upstream.fingerprint, upstream.epochs.adapters_token

    async def test() -> None:
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            before, turn = names(upstream), upstream.turn
            ended = await upstream.change(change, adapter)
            during = names(upstream)
            assert during != before
            assert upstream.turn > turn
            assert kept.document["epochs"] == upstream.epochs.as_json()  # before it is passed on
            assert await upstream.confirm(upstream.turn, ()) is Reason.MODEL_CHANGED
            turn = upstream.turn
            ended(status)
            assert upstream.turn > turn
            assert await refusal(upstream) is None
            assert await upstream.confirm(upstream.turn, ()) is None
            if ENDS[status]:
                assert names(upstream) == before
            else:
                assert names(upstream) not in (before, during)
            await until(lambda: kept.document["epochs"] == upstream.epochs.as_json())

    run(test)


def test_change_of_the_unknown() -> None:
    """Weights that are changed before anybody asked would be taken for the old ones."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream) is None
                before = upstream.fingerprint
            kept.document["identity"] = None
            async with asking(script.url, kept) as upstream:
                ended = await upstream.change(Change.MODEL, None)
                assert kept.document["unsettled"]
                ended(200)
                assert await refusal(upstream) is None
                assert upstream.fingerprint != before
                await until(lambda: not kept.document["unsettled"])

    run(test)


def test_crash_during_a_change() -> None:
    """A proxy that is killed while the weights change would believe in the old ones."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream) is None
                before = upstream.fingerprint
                await upstream.change(Change.MODEL, None)
                during = upstream.fingerprint
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream) is None
                assert upstream.fingerprint not in (before, during)

    run(test)


def test_two_changes() -> None:
    """One that is refused would undo the other, too."""

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            assert await refusal(upstream) is None
            before = upstream.fingerprint
            first = await upstream.change(Change.MODEL, None)
            second = await upstream.change(Change.MODEL, None)
            first(200)
            assert await upstream.confirm(upstream.turn, ()) is Reason.MODEL_CHANGED
            second(404)
            assert await refusal(upstream) is None
            assert upstream.fingerprint != before
            assert await upstream.confirm(upstream.turn, ()) is None

    run(test)


def test_change_by_another_proxy() -> None:
    """What it has changed would go on being served, or be taken for what it was."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            before, turn, asked = upstream.fingerprint, upstream.turn, len(script.asked)
            assert upstream.identity
            known = upstream.epochs.as_numbers()
            upstream.adopt(known, {**known, "last": 7, "m:another": 7})
            assert (upstream.fingerprint, upstream.turn) == (before, turn)
            assert upstream.admits(credential(None), time.monotonic())
            known = upstream.epochs.as_numbers()
            upstream.adopt(known, {**known, "last": 8, f"m:{upstream.identity.digest}": 8})
            assert upstream.fingerprint != before
            assert upstream.turn > turn
            assert await upstream.confirm(turn, ()) is Reason.MODEL_CHANGED
            assert not upstream.admits(credential(None), time.monotonic())
            assert await refusal(upstream) is None  # it may have another name by now
            assert len(script.asked) > asked
            await until(lambda: kept.document["epochs"]["last"] == 8)
            before = upstream.turn
            known = upstream.epochs.as_numbers()
            upstream.adopt(known, {**known, "last": 9, "a:adapter": 9})
            assert upstream.turn > before

    run(test)


# What outlives the process


def test_state_file(tmp_path: Path) -> None:
    """After a restart, stored answers could not be had until upstream is there, or not be found."""

    async def test() -> None:
        async with serving() as script:
            file = StateFile(tmp_path)
            async with asking(script.url, file) as upstream:
                assert await refusal(upstream) is None
                (await upstream.change(Change.ADAPTER, "x"))(200)
                (await upstream.change(Change.MODEL, None))(200)
                assert await refusal(upstream) is None
                await until(lambda: file.load().get("asks_keys") is False)
                await until(lambda: file.load()["epochs"] == upstream.epochs.as_json())
                await until(lambda: not file.load()["unsettled"])
                known = upstream.identity, upstream.fingerprint, upstream.epochs, upstream.models
            script.stop()
            await settled()
            async with asking(script.url, StateFile(tmp_path)) as upstream:
                again = upstream.identity, upstream.fingerprint, upstream.epochs, upstream.models
                assert again == known
                assert not upstream.admits(b"", module.time.monotonic())
                assert await refusal(upstream) is None
                assert upstream.state is State.DOWN

    run(test)


def test_state_file_of_one_with_keys() -> None:
    """After a restart, one that asks for keys would be open while it is down."""

    async def test() -> None:
        kept = Kept()
        async with serving(keys={"good"}) as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream, "good") is None
            script.stop()
            await settled()
            async with asking(script.url, kept) as upstream:
                assert upstream.identity
                for key in ("good", "bad", None):
                    assert await refusal(upstream, key) is Reason.UNAUTHORIZED

    run(test)


def test_state_file_of_another_url() -> None:
    """One server would be taken for another; or a folder could not be read offline elsewhere."""

    async def test() -> None:
        kept = Kept()
        async with serving() as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream) is None
            (await upstream.change(Change.MODEL, None))(200)
            assert await refusal(upstream) is None
            await until(lambda: kept.document["epochs"] == upstream.epochs.as_json())
        async with asking(dead_url(), kept) as other:
            assert other.identity is None
            assert (other.epochs, other.models) == (upstream.epochs, upstream.models)
            assert await refusal(other) is Reason.NO_MODEL
        async with asking(dead_url(), kept, is_offline=True) as other:
            assert other.fingerprint == upstream.fingerprint

    run(test)


@pytest.mark.parametrize(
    "document",
    [{"epochs": 7}, {"models": 7}, {"url": "http://h", "identity": {"odd": 1}}],
    ids=str,
)
def test_broken_state(document: dict[str, Any]) -> None:
    """What cannot be read would be forgotten, and old answers be given for new ones."""
    kept = Kept()
    kept.document = document

    async def test() -> None:
        with pytest.raises(ValueError, match="cannot be read"):
            Upstream("http://h", kept)

    run(test)


def test_offline() -> None:
    """`--mode offline` would ask somebody."""

    async def test() -> None:
        kept = Kept()
        async with serving(keys={"good"}) as script:
            async with asking(script.url, kept) as upstream:
                assert await refusal(upstream, "good") is None
            before = script.connections
            async with asking(script.url, kept, is_offline=True) as upstream:
                assert upstream.identity
                for key in ("good", "bad", None):
                    assert upstream.admits(credential(key), module.time.monotonic() + 1e6)
                assert await upstream.check(module.time.monotonic() + 1e6) is State.UNKNOWN
                await settled()
            assert script.connections == before

    run(test)


def test_no_secrets() -> None:
    """Keys would be found in files, logs or a debugger's output."""

    async def test() -> None:
        kept = Kept()
        async with serving(keys={"clients-secret"}) as script, asking(script.url, kept) as upstream:
            assert await refusal(upstream, "clients-secret") is None
            (await upstream.change(Change.MODEL, None))(200)
            assert await refusal(upstream, "clients-secret") is None
            said = [json.dumps(kept.document), repr(upstream), repr(upstream.identity)]
            said += [repr(upstream.epochs), repr(upstream._admission), repr(upstream.client)]
            assert not any("secret" in text for text in said)
            assert credential("clients-secret").hex() not in said[0]

    run(test)


def test_disk_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk would fail the request that changes the weights."""

    class Full(Kept):
        def save(self, document: dict[str, Any]) -> None:
            raise OSError("no space left")

    async def test() -> None:
        async with serving() as script, asking(script.url, Full()) as upstream:
            assert await refusal(upstream) is None
            (await upstream.change(Change.MODEL, None))(200)
            assert await refusal(upstream) is None

    run(test)
    assert "no space left" in caplog.text


# Whether it is there


def check(url: str, now: float = 1e9, **kwargs: Any) -> State:
    async def ask() -> State:
        async with asyncio.timeout(SECONDS), asking(url, **kwargs) as upstream:
            state = await upstream.check(now)
            assert upstream.state is state
            return state

    return asyncio.run(ask())


@pytest.mark.parametrize("status", [200, 204, 301, 307, 401, 404, 500, 503])
def test_any_status_is_up(status: int) -> None:
    """A server that wants a key, or has no such route, would be reported as down."""

    async def test() -> None:
        says = dict.fromkeys(("/model_info", "/get_model_info", "/v1/models"), (status, b""))
        async with serving(says=says) as script, asking(script.url) as upstream:
            assert await upstream.check(1e9) is State.UP

    run(test)


@pytest.mark.parametrize("url", ["", "http://no-such-host.invalid:30000"])
def test_down(url: str) -> None:
    """A server that is not there would be reported as up, or fail the start."""
    assert check(url or dead_url()) is State.DOWN


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 what\r\n\r\n", b"\0" * 70000, b"HTTP/1.1 200 X\r\nC"],
    ids=["ssh", "status", "endless", "half"],
)
def test_not_http(data: bytes) -> None:
    """A wrong port (of SSH, say) would give a traceback in place of the warning."""
    with saying(data) as url:
        assert check(url) is State.DOWN


def test_health_has_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe would wait as long as the store does for a server that hangs, and call us dead."""
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.05)

    async def test() -> None:
        async with serving() as script, asking(script.url) as upstream:
            upstream.seen(True, 0.0)
            async with upstream._lock:  # as a look at it has that takes its time
                assert await upstream.check(1e9) is State.UP

    run(test)


def test_seen(clock: Clock) -> None:
    """`/health` would deny what requests have just shown, or ask each time."""

    async def test() -> None:
        async with serving() as script, asking(script.url, interval=5.0) as upstream:
            upstream.seen(False, clock.now)
            assert await upstream.check(clock.now + 1) is State.DOWN
            assert script.asked == []
            clock.now += 6
            assert await upstream.check(clock.now) is State.UP
            assert script.paths == ["/model_info", "/server_info"]
            upstream.seen(True, clock.now)
            assert await upstream.check(clock.now + 5) is State.UP
            assert len(script.asked) == 2

    run(test)


def test_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's proxy setting would make a local server look down."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    test_any_status_is_up(200)


@pytest.mark.parametrize(("insecure", "state"), [(False, State.DOWN), (True, State.UP)])
def test_self_signed(insecure: bool, state: State, tmp_path: Path) -> None:
    """A stranger's certificate would be believed, or `--insecure` not help."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            received.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
            await reader.read()
        writer.transport.abort()

    async def test() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self_signed(tmp_path))
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with asking(url, tls=tls_context(insecure=insecure)) as upstream:
            assert await upstream.check(1e9) is state
        assert len(received) == int(insecure)
        server.close()
        await settled()

    run(test)


def test_post() -> None:
    """An abort would not reach the upstream, or be refused for want of its key, or fail it."""

    async def test() -> None:
        async with serving(says={"/abort_request": (500, {})}) as script:
            fields = ((b"authorization", b"Bearer key"), (b"content-type", b"application/json"))
            async with asking(script.url) as upstream:
                await upstream.post("/abort_request", b'{"rid":"a"}', fields)
                (asked,) = script.asked
                assert (asked.method, asked.path, asked.json) == (
                    "POST", "/abort_request", {"rid": "a"}
                )  # fmt: skip
                assert asked.headers["authorization"] == "Bearer key"
        async with asking(dead_url()) as upstream:
            await upstream.post("/abort_request", b"{}", ())

    run(test)
