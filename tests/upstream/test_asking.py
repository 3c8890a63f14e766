"""What upstream's answers say of who it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sglang_cached_addon.upstream.asking import Questions, Verdict
from sglang_cached_addon.wire.client import Client
from sglang_cached_addon.wire.connection import Headers, WholeResponse
from tests.upstream.scripted import (
    INFO,
    Script,
    bounded,
    credential_headers,
    serving,
    settled,
    until,
)

KNOWN, REFUSED, NAMELESS, TROUBLED, SLOW, DOWN = Verdict


@asynccontextmanager
async def questions(url: str) -> AsyncIterator[Questions]:
    asked = Questions(url, None)
    try:
        yield asked
    finally:
        asked.close()
        await settled()


@bounded
async def test_once_more() -> None:
    """One question will do on the connection on which upstream has named itself; all are asked
    where it says something else, or on another connection, and after `forget`."""

    async def asks(script: Script, asked: Questions) -> list[str]:
        before = len(script.asked)
        assert (await asked.again(credential_headers("key"))).verdict is KNOWN
        return script.paths[before:]

    one, all_of_it = ["/model_info"], ["/model_info", "/server_info"]
    async with serving() as script, questions(script.url) as asked:
        assert await asks(script, asked) == all_of_it
        assert await asks(script, asked) == one
        script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
        assert await asks(script, asked) == one + all_of_it
        assert await asks(script, asked) == one
        script.hang_up()
        await settled()
        assert await asks(script, asked) == one + all_of_it
        asked.forget()
        assert await asks(script, asked) == all_of_it
        assert {a.headers["authorization"] for a in script.asked} == {"key"}


@bounded
async def test_servers_that_take_turns() -> None:
    """Where another answer comes between two equal ones on one connection, several servers take
    turns; a model that is another one from then on is one server's."""
    async with serving() as script, questions(script.url) as asked:
        assert (await asked.round(())).verdict is KNOWN
        script.says["/model_info"] = (200, {**INFO, "weight_version": "2"})
        assert (await asked.again(())).verdict is KNOWN
        assert not asked.sightings.are_several(time.monotonic())
        script.turns["/model_info"] = [(200, {**INFO, "weight_version": "3"})]
        assert (await asked.again(())).verdict is KNOWN
        assert asked.sightings.are_several(time.monotonic())


@bounded
async def test_forgotten_while_it_is_asked() -> None:
    """Words that are forgotten while another connection is asked are compared with nothing: all is
    asked there."""
    async with serving() as script, questions(script.url) as asked:
        assert (await asked.round(())).verdict is KNOWN
        client, paths = Client(script.url), list[str]()

        async def ask(method: str, path: str, headers: Headers) -> WholeResponse:
            paths.append(path)
            asked.forget()
            return await client.ask(method, path, headers, b"")

        # The first is asked everything; the second soon after it, and would be asked less.
        for _ in range(2):
            assert (await asked.round(())).verdict is KNOWN
            said = await asked.on(ask, (), is_new=True)
            assert said.verdict is KNOWN
        assert paths[-2:] == ["/model_info", "/server_info"]
        client.close()


@bounded
async def test_forgotten_amid_a_round() -> None:
    """Words from before something showed that they may be old are not compared with."""
    async with serving(held=("/server_info",)) as script, questions(script.url) as asked:
        script.may_answer.clear()
        asking = asyncio.ensure_future(asked.round(()))
        await until(lambda: len(script.asked) == 2)
        asked.forget()
        script.may_answer.set()
        assert (await asking).verdict is KNOWN
        assert asked.connection == 0
