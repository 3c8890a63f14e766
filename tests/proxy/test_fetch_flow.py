"""One fetch on its way through the hooks, with a server and an addon that the test writes. What
mitmproxy's users see of it is in `tests/e2e/test_flows.py`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.test import taddons

from sglang_cached_addon.proxy.fetch_flow import FetchFlow
from sglang_cached_addon.proxy.kept import MAX_KEPT
from sglang_cached_addon.proxy.onlookers import Onlookers
from sglang_cached_addon.wire.client import Client, Unreachable
from sglang_cached_addon.wire.connection import Broken
from sglang_cached_addon.wire.observing import Killed, Sender
from tests.tables import each
from tests.wire.serving import ASKED, against, saying
from tests.wire.test_responses import OK

EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 4\r\n\r\n",
    b"ab",
    b"cd",
)
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (MAX_KEPT + 2, bytes(MAX_KEPT + 2))


class Watcher:
    """An addon that notes the hooks, and does something in one of them."""

    def __init__(self, **deeds: Callable[[http.HTTPFlow], object]) -> None:
        self.told: list[str] = []
        self.flow: http.HTTPFlow | None = None
        self._deeds = deeds

    def _note(self, hook: str, flow: http.HTTPFlow) -> None:
        self.told.append(hook)
        self.flow = flow
        if deed := self._deeds.get(hook):
            deed(flow)

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self._note("requestheaders", flow)

    def request(self, flow: http.HTTPFlow) -> None:
        self._note("request", flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        self._note("responseheaders", flow)

    def response(self, flow: http.HTTPFlow) -> None:
        self._note("response", flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self._note("error", flow)

    def shown(self) -> bytes | None:
        assert self.flow and self.flow.response
        return self.flow.response.raw_content

    async def failed(self) -> str:
        """Why the fetch failed, once that is told."""
        async with asyncio.timeout(60):
            while "error" not in self.told:
                await asyncio.sleep(0)
        assert self.flow and self.flow.error
        return self.flow.error.msg


BEFORE = ["requestheaders", "request"]
WHOLE = [*BEFORE, "responseheaders", "response"]


def fetching(
    watcher: Watcher, answer: bytes, case: Callable[[Sender], Awaitable[None]], *more: bytes
) -> None:
    """Runs a case with a sender to a server that answers so."""

    async def run(client: Client) -> None:
        with taddons.context(watcher, loadcore=False):
            await case(FetchFlow(Onlookers(), client, "why"))

    against(saying(answer, *more), run)


async def body_of(sender: Sender) -> tuple[int, bytes, bool]:
    async with sender.open(*ASKED) as answer:
        body = b"".join([piece async for piece in answer.pieces()])
        return answer.status, body, answer.is_altered


def changes(flow: http.HTTPFlow) -> None:
    assert flow.response
    flow.response.content = b"other"


def answers(flow: http.HTTPFlow) -> None:
    flow.response = http.Response.make(201, b"mine")


def passes(flow: http.HTTPFlow) -> None:
    assert flow.response
    flow.response.stream = True


def doubles(flow: http.HTTPFlow) -> None:
    assert flow.response
    flow.response.stream = lambda data: [data, data]


def waits(flow: http.HTTPFlow) -> None:
    assert flow.response
    flow.response.stream = False


@each(
    ("deeds", "server", "given", "shown"),
    [
        ({}, OK, (200, b"ok", False), b"ok"),
        ({}, b"".join(EVENTS), (200, b"abcd", False), b"abcd"),
        ({"response": changes}, OK, (200, b"other", True), b"other"),
        ({"response": changes}, b"".join(EVENTS), (200, b"abcd", False), b"other"),
        ({"request": answers}, OK, (201, b"mine", True), b"mine"),
        ({"request": answers, "response": changes}, OK, (201, b"other", True), b"other"),
        ({"responseheaders": passes}, OK, (200, b"ok", False), b"ok"),
        ({"responseheaders": doubles}, OK, (200, b"okok", True), b"ok"),
        ({"responseheaders": waits, "response": changes}, b"".join(EVENTS), (200, b"other", True),
         b"other"),
        ({}, LONG, (200, bytes(MAX_KEPT + 2), False), None),
    ],
    ids=lambda row: f"{sorted(row[0])} {row[1][:40]!r}",
)  # fmt: skip
def test_answers(
    deeds: dict[str, Any], server: bytes, given: tuple[int, bytes, bool], shown: bytes | None
) -> None:
    """What is given is what others have made of it, and said to be altered; what is longer than is
    kept is passed on as it comes."""
    watcher = Watcher(**deeds)

    async def case(sender: Sender) -> None:
        assert await body_of(sender) == given
        assert watcher.told == WHOLE
        assert watcher.shown() == shown
        assert watcher.flow and not watcher.flow.live and not watcher.flow.error

    fetching(watcher, server, case)


@each("hook", ["requestheaders", "request", "responseheaders", "response"])
def test_killed(hook: str) -> None:
    """Whenever it is killed, there is no answer."""
    watcher = Watcher(**{hook: lambda flow: flow.kill()})

    async def case(sender: Sender) -> None:
        with pytest.raises(Killed):
            await body_of(sender)
        assert await watcher.failed() == "Connection killed."

    fetching(watcher, OK, case)


def test_a_killed_stream() -> None:
    """A stream whose end is killed was given, and is said to have failed."""
    watcher = Watcher(response=lambda flow: flow.kill())

    async def case(sender: Sender) -> None:
        async def read() -> None:
            async with sender.open(*ASKED) as answer:
                assert [piece async for piece in answer.pieces()]

        with pytest.raises(Killed):
            await read()
        assert await watcher.failed() == "Connection killed."

    fetching(watcher, b"".join(EVENTS), case)


@each(
    ("server", "why"),
    [(b"", "it hung up without an answer"), (OK[:-1], "it hung up in the middle of an answer"),
     (b"".join(EVENTS)[:-1], "it hung up in the middle of an answer")],
)  # fmt: skip
def test_broken(server: bytes, why: str) -> None:
    """An answer that breaks off is an error, told once, with what has come of it."""
    watcher = Watcher()

    async def case(sender: Sender) -> None:
        with pytest.raises(Broken):
            await body_of(sender)
        assert await watcher.failed() == why
        assert watcher.told[-1] == "error" and "response" not in watcher.told

    fetching(watcher, server, case)


def test_unreachable() -> None:
    """Where nobody listens, the flow says so."""
    watcher = Watcher()

    async def run() -> None:
        with taddons.context(watcher, loadcore=False):
            client = Client("http://127.0.0.1:1")
            with pytest.raises(Unreachable):
                await body_of(FetchFlow(Onlookers(), client, "why"))
            assert await watcher.failed() == "Connection refused"

    asyncio.run(run())


def test_what_is_not_waited_for() -> None:
    """Who takes only the begin of a stream ends it, and the flow keeps what has come."""
    watcher = Watcher()

    async def case(sender: Sender) -> None:
        async with sender.open(*ASKED) as answer, aclosing(answer.pieces()) as pieces:  # type: ignore[type-var]
            assert await anext(pieces) == b"ab"
        assert await watcher.failed() == "the end of its body was not waited for"
        assert watcher.shown() == b"ab"

    fetching(watcher, b"".join(EVENTS[:2]), case)


def test_held() -> None:
    """It is known for how long a fetch was held, by whichever hook; one that is not is held for no
    time at all."""
    for hooks in ((), ("request",), ("request", "response")):
        watcher = Watcher(**dict.fromkeys(hooks, lambda flow: flow.intercept()))

        async def case(
            sender: Sender, watcher: Watcher = watcher, hooks: Sequence[str] = hooks
        ) -> None:
            held, begun = 0.0, time.monotonic()
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                asking = group.create_task(held_of(sender))
                for hook in hooks:
                    while hook not in watcher.told:
                        await asyncio.sleep(0)
                    await asyncio.sleep(0.01)  # it waits by now
                    seen = time.monotonic()
                    await asyncio.sleep(0.05)
                    held += time.monotonic() - seen
                    assert watcher.flow
                    watcher.flow.resume()
            found = asking.result()
            assert held <= found <= time.monotonic() - begun if hooks else found == 0.0

        fetching(watcher, OK, case)


async def held_of(sender: Sender) -> float:
    async with sender.open("POST", "/x", ()) as answer:
        return answer.held


def test_left() -> None:
    """Who is cancelled while a fetch is held lets go of it."""
    watcher = Watcher(request=lambda flow: flow.intercept())

    async def case(sender: Sender) -> None:
        asking = asyncio.ensure_future(body_of(sender))
        async with asyncio.timeout(60):
            while watcher.flow is None or not watcher.flow.intercepted:
                await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await watcher.failed() == "nobody wants it any more"
        assert not watcher.flow.intercepted

    fetching(watcher, OK, case)
