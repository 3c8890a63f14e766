"""Who sees what upstream is asked. What is seen of a fetch is in `test_fetch_flow.py`."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mitmproxy.test import taddons

from sglang_cached_addon.proxy.desk import Desk
from sglang_cached_addon.proxy.fetch_flows import FetchFlows
from sglang_cached_addon.proxy.onlookers import Onlookers
from sglang_cached_addon.wire.client import Client, Unreachable
from tests.proxy.test_fetch_flow import WHOLE, Watcher, answers
from tests.tables import each
from tests.wire.serving import against, saying
from tests.wire.test_responses import OK


def desk(*, shows: bool) -> Desk:
    return cast(Desk, SimpleNamespace(settings=SimpleNamespace(show_probes=shows)))


async def told(watcher: Watcher, last: str) -> None:
    async with asyncio.timeout(60):
        while last not in watcher.told:
            await asyncio.sleep(0)


@each(("shows", "is_seen"), [(True, True), (False, False)])
def test_questions(shows: bool, is_seen: bool) -> None:
    """They are flows where that is wanted, and whatever another addon does to them changes
    nothing; they are not held."""
    watcher, onlookers = Watcher(request=answers), Onlookers()
    flows = FetchFlows(onlookers, desk(shows=shows))

    async def case(client: Client) -> None:
        assert not flows.is_there and not flows.sees_questions
        with taddons.context(watcher, loadcore=False):
            onlookers.look()
            assert (flows.is_there, flows.sees_questions) == (True, is_seen)
            answer = await client.ask("GET", "/model_info", [])
            assert (answer.status, answer.body) == (200, b"ok")
            if is_seen:
                await told(watcher, "response")
            assert watcher.told == (WHOLE if is_seen else [])
            if watcher.flow:
                assert watcher.flow.is_replay and watcher.flow.comment.startswith("probe")

    against(saying(OK), case, observer=flows)


def test_a_question_that_fails() -> None:
    """It is a flow with an error."""
    watcher, onlookers = Watcher(), Onlookers()
    flows: Any = FetchFlows(onlookers, desk(shows=True))

    async def run() -> None:
        with taddons.context(watcher, loadcore=False):
            onlookers.look()
            with pytest.raises(Unreachable):
                await Client("http://127.0.0.1:1", observer=flows).ask("GET", "/model_info", [])
            assert await watcher.failed() == "Connection refused"
            assert watcher.told == ["requestheaders", "request", "error"]

    asyncio.run(run())
