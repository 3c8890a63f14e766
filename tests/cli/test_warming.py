"""Calls are sent to a server whose every answer the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from sglang_cached_addon.cli.requests import Request
from sglang_cached_addon.cli.tally import Tally
from sglang_cached_addon.cli.warming import Lines, Manner, warm
from tests.ports import dead_url
from tests.tables import each
from tests.upstream.scripted import Script, bounded, serving, until

FIELDS = [(b"Authorization", b"Bearer k")]


def lines(count: int) -> Lines:
    return iter(
        [(i, Request("/generate", b'{"n":%d}' % i, f"id-{i}")) for i in range(1, count + 1)]
    )


def sending(script: Script, count: int, **kwargs: Any) -> asyncio.Task[Tally]:
    manner = Manner(script.url, FIELDS, **{"pause": 0.001, **kwargs})
    return asyncio.ensure_future(warm(manner, lines(count)))


@bounded
async def test_so_many_at_a_time() -> None:
    """No more calls are under way than are wanted, each as it was written down."""
    async with serving() as script:
        task = sending(script, 7, at_once=3)
        held = [await script.calls.get() for _ in range(3)]
        assert script.calls.empty()
        for number in range(4, 8):
            held.pop(0).answer(200, {})
            held.append(await script.calls.get())
            assert held[-1].json == {"n": number}
            assert script.calls.empty()
        for asked in held:
            asked.answer(200, {})
        tally = await task
        assert (tally.sent, tally.bypasses, tally.stopped) == (7, 7, None)
        assert {asked.headers["authorization"] for asked in script.asked} == {"Bearer k"}
        assert script.connections == 3


ATTEMPTS: dict[str, tuple[list[int], int, dict[str, int]]] = {
    # what the server says in turn, how often it is asked, and which failures are counted
    "busy for a moment": ([503, 429, 200], 3, {}),
    "hangs up once": ([0, 200], 2, {}),
    "busy for ever": ([503, 502, 504], 3, {"status 504: busy": 1}),
    "hangs up for ever": ([0, 0, 0], 3, {}),
    "refuses": ([400], 1, {"status 400: busy": 1}),
}


@each("case", ATTEMPTS)
@bounded
async def test_attempts(case: str) -> None:
    """What may be answered in a moment is sent again, and nothing else is."""
    says, count, failures = ATTEMPTS[case]
    async with serving() as script:
        task = sending(script, 1, attempts=3)
        for status in says:
            asked = await script.calls.get()
            if status:
                asked.answer(status, {"error": {"message": "busy"}})
            else:
                asked.cut()
        tally = await task
        assert len(script.asked) == count
        assert tally.sent == 1
        if case == "hangs up for ever":
            (why,) = tally.failures
            assert why.startswith("no answer: ")
        else:
            assert tally.failures == failures
        assert tally.is_whole == (says[-1] == 200)


@bounded
async def test_too_slow() -> None:
    """An answer that does not come in time is a failure, and the next call is sent."""
    async with serving() as script:
        tally = await sending(script, 2, at_once=1, seconds=0.05)
        assert (tally.sent, tally.failures) == (2, {"no answer within 0.05 s": 2})
        assert tally.failed[0] == {
            "line": 1, "custom_id": "id-1", "why": "no answer within 0.05 s",
        }  # fmt: skip


@bounded
async def test_interrupted() -> None:
    """Whoever interrupts it learns what came of what was answered; the rest is not sent, and
    nobody waits for what is under way."""
    async with serving() as script:
        task = sending(script, 9, at_once=2)
        (await script.calls.get()).answer(200, {})
        left = [await script.calls.get() for _ in range(2)]
        task.cancel()
        tally = await task
        assert (tally.sent, tally.stopped) == (1, "interrupted")
        await until(lambda: all(asked.is_left for asked in left))
        assert len(script.asked) == 3


@bounded
async def test_no_proxy() -> None:
    """Where nobody is reached, the rest is not tried."""
    taken: list[int] = []

    def counted() -> Iterator[tuple[int, Request]]:
        for number, request in lines(1000):
            taken.append(number)
            yield number, request

    url = dead_url()
    tally = await warm(Manner(url, at_once=2, attempts=2, pause=0.001), counted())
    assert tally.stopped
    assert tally.stopped.startswith(f"{url}: ")
    assert (tally.sent, len(taken)) == (0, 2)


@bounded
async def test_progress() -> None:
    """It is told of each call that is done; a path before the proxy's own is kept."""
    async with serving() as script:
        done: list[int] = []
        manner = Manner(f"{script.url}/below/", at_once=1)
        task = asyncio.ensure_future(warm(manner, lines(2), lambda: done.append(1)))
        for count in range(2):
            asked = await script.calls.get()
            assert (asked.path, len(done)) == ("/below/generate", count)
            asked.answer(400, {})
        assert (await task).failures == {"status 400": 2}
        assert done == [1, 1]
