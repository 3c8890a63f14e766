"""Calls of runs that several proxies share."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from sglang_cached_addon.service.gathering import Gathering
from sglang_cached_addon.store.memory import MemoryStore
from sglang_cached_addon.store.redis import SharedStore
from tests.redis import RedisServer, needs_redis
from tests.service.stage import GENERATE, Got, Stage, changed, standing
from tests.service.test_claims import answered, draw
from tests.service.test_runs_at_random import World
from tests.upstream.scripted import Asked, run, settled, until

pytestmark = needs_redis


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow, as the machine is busy, is not away."""
    monkeypatch.setattr("sglang_cached_addon.store.redis.server.SECONDS", 10.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.stop()


@asynccontextmanager
async def sharing(server: RedisServer, count: int = 2, **more: Any) -> AsyncIterator[list[Stage]]:
    """Services that share an empty server."""
    with server.client() as client:
        client.flushall()
    stages: list[Stage] = []
    async with AsyncExitStack() as exits:
        exits.push_async_callback(settled, 20)  # until all connections are closed
        for _ in range(count):
            store = SharedStore(server.url, MemoryStore())
            exits.callback(store.close)
            stage = await exits.enter_async_context(standing(store=store, runs=store.runs, **more))
            store.state.load()
            store.start(stage.upstream)
            stages.append(stage)
            stage.script.numbers = stages[0].script.numbers
            await until(lambda store=store: store.is_up)
        yield stages


def test_any_sequence(server: RedisServer) -> None:
    """As with one proxy, whatever happens: no two calls of a run are given the same sample, and
    what was not delivered takes no place."""

    async def test(seed: int) -> None:
        chance = random.Random(seed)
        gathering = Gathering(chance.choice((0.0, 0.002)), 4)
        async with sharing(server, gathering=gathering) as stages:
            world = World(chance, stages)
            await world.live()
            await world.check()
            for stage in stages:
                await until(lambda stage=stage: not stage.store.facts()["pending"])
            for shown in await stages[0].service.runs.shown():
                pairs = world.given.items()
                given = [len(texts) for (name, _), texts in pairs if name == shown["name"]]
                assert shown["name"] == "c" or shown["places"] == sum(given)

    for seed in range(6):
        run(lambda: test(seed))  # noqa: B023


async def sent(stage: Stage, tasks: list[asyncio.Task[Got]]) -> list[int]:
    """The `n` of each call to upstream, until all clients have their answers."""
    found: list[int] = []

    def answer(asked: Asked) -> None:
        found.append(asked.json["sampling_params"]["n"])
        stage.generated(asked)

    await answered(stage, tasks, answer)
    return found


def test_together(server: RedisServer) -> None:
    """Equal calls that wait at the same moment are one call to upstream, also while the server is
    away; what one proxy has generated another one reads, and a run that has it goes on behind."""

    async def test() -> None:
        async with sharing(server, gathering=Gathering(0.02)) as (one, two):
            tasks = [draw(one, "q", n=8) for _ in range(4)]
            assert await sent(one, tasks) == [32]
            places = {got.result().places for got in tasks}
            assert places == {b"0-7", b"8-15", b"16-23", b"24-31"}
            await one.settled()
            with server.client() as client:
                client.config_resetstat()
                more = draw(two, "q")
                assert await sent(two, [more]) == [1]
                assert more.result().places == b"32"
                scripts = client.info("commandstats")["cmdstat_eval"]["calls"]
            assert scripts < 40, "what it does not know is asked for in ever larger pieces"
            again = [draw(two, "q", "b", 8) for _ in range(4)]
            assert [(await task).kind for task in again] == ["hit"] * 4
            assert {got.result().places for got in again} == places
            server.stop()
            try:
                await until(lambda: not (one.store.is_up or two.store.is_up))
                tasks = [draw(one, "q", "b") for _ in range(8)]
                assert await sent(one, tasks) == [8]
                assert len({got.result().texts[0] for got in tasks}) == 8
            finally:
                server.start()

    run(test)


def test_lists(server: RedisServer) -> None:
    """A list of prompts, some of them equal, takes of each what it wants, in one round trip."""

    async def test() -> None:
        async with sharing(server) as (one, two):
            for name in "ab":
                tasks = [draw(one, ["p", "q", "p"], name, 2)]
                await sent(one, tasks)
                assert tasks[0].result().places == b"0-1,0-1,2-3"
                assert len(set(tasks[0].result().texts)) == 6
                await one.settled()
            await until(lambda: not one.store.facts()["pending"])
            before = one.store.facts()["round_trips"]
            await draw(one, ["p", "q", "p"], "c", 2)
            assert one.store.facts()["round_trips"] <= before + 2  # another one may keep it up
            got = await draw(two, ["q", "p"], "c", cache_control="only-if-cached")
            assert (got.kind, got.status) == ("denied", 504)

    run(test)


def test_who_leaves_while_the_server_is_asked(server: RedisServer) -> None:
    """A call that ends before it knows what it was granted has nothing."""

    async def test() -> None:
        async with sharing(server) as (one, two):
            await sent(one, [draw(one, "q", "other", 4)])
            await one.settled()
            await draw(one, "q")
            server.signal(signal.SIGSTOP)
            tasks = [draw(one, "q") for _ in range(3)]
            await settled()
            for task in tasks:
                task.cancel()
            await settled()
            server.signal(signal.SIGCONT)
            while (await one.service.runs.show("a"))["places"] > 1:
                await asyncio.sleep(0.005)
            assert (await draw(two, "q")).places == b"1"

    run(test)


def test_begun_anew_meanwhile(server: RedisServer) -> None:
    """What a call had taken before a run was rewound counts no more, whether it is delivered."""

    async def test() -> None:
        async with sharing(server) as (one, two):
            await sent(one, [draw(one, "q", "other", 2)])
            await one.settled()
            for n, is_delivered in ((3, True), (4, False)):
                task = draw(one, "q", n=n)
                asked = await one.asked()
                assert (await two.service.runs.rewind("a"))["places"] == 0
                if is_delivered:
                    one.generated(asked)
                    assert len((await task).texts) == n
                else:
                    task.cancel()
                await one.settled()
                assert [(await draw(two, "q")).places for _ in range(2)] == [b"0", b"1"]
                await two.service.runs.delete("a")

    run(test)


def test_held_by_another(server: RedisServer) -> None:
    """What a call elsewhere has not delivered yet nobody waits for."""

    async def test() -> None:
        async with sharing(server) as (one, two):
            await sent(one, [draw(one, "q", "other", 2)])
            await one.settled()
            body = {"text": "q", "sampling_params": {"n": 2}}
            slow = one.make(GENERATE, body, {"x-cache-run": "a"})
            assert (await one.receive(slow)).outcome.places == b"0-1"
            more = draw(two, "q")
            assert await sent(two, [more]) == [1]
            assert more.result().places == b"2"
            slow.settle(is_delivered=False)
            await until(lambda: not one.store.facts()["pending"])
            assert [(await draw(two, "q")).places for _ in range(2)] == [b"0", b"1"]

    run(test)


def test_the_model_changes_meanwhile(server: RedisServer) -> None:
    """A call that has waited for the server is not answered with a sample of the former model."""

    async def test() -> None:
        async with sharing(server) as (one, _):
            await sent(one, [draw(one, "q", "other", 2)])
            await one.settled()
            server.signal(signal.SIGSTOP)
            task = draw(one, "q")
            await settled()
            await changed(one)
            server.signal(signal.SIGCONT)
            assert await sent(one, [task]) == [1]
            assert task.result().kind == "miss"

    run(test)
