"""Who looks on sees what a client is asked, and changes nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from sglang_cached_addon.wire.client import Ask, Client
from sglang_cached_addon.wire.connection import Broken, WholeResponse
from sglang_cached_addon.wire.observing import Observer, Sender, Wrapped
from sglang_cached_addon.wire.outgoing import Request
from tests.tables import each
from tests.wire.serving import ASKED, against, saying
from tests.wire.test_responses import OK


class Watcher:
    """An observer that notes the questions."""

    is_there = True

    def __init__(self, sees_questions: bool) -> None:
        self.sees_questions = sees_questions
        self.seen: list[tuple[str, bytes | None]] = []

    def around(self, client: Wrapped, caption: str) -> Sender:
        raise NotImplementedError

    async def question(
        self, client: Wrapped, asked: Request, coming: Awaitable[WholeResponse]
    ) -> WholeResponse:
        try:
            answer = await coming
        except Broken:
            self.seen.append((asked.path, None))
            raise
        self.seen.append((client.request(asked).path, answer.body))
        return answer


@each(("sees", "count"), [(True, 3), (False, 0)])
def test_questions(sees: bool, count: int) -> None:
    """What is asked with `ask`, and to greet, is seen where that is wanted, and what fails, too; a
    fetch is not."""
    watcher = Watcher(sees)
    observer: Observer = watcher
    greeted = asyncio.Event()

    async def greet(ask: Ask, former: Any) -> str:
        answer = await ask("GET", "/info", [])
        greeted.set()
        return answer.body.decode()

    async def case(client: Client) -> None:
        async with client.open(*ASKED) as response:
            assert (await response.whole()).body == b"ok"
            assert (response.sent, response.is_altered) == (None, False)
            ours, theirs, since = response.ends
        assert theirs == client.address
        assert ours[0] == theirs[0] and since > 0
        await greeted.wait()
        assert (await client.ask("GET", "/ask", [])).body == b"ok"
        with pytest.raises(Broken):
            await client.ask("GET", "/fails", [])
        assert watcher.seen == [("/info", b"ok"), ("/ask", b"ok"), ("/fails", None)][:count]

    against(saying(OK, OK, OK, b"no HTTP"), case, greet=greet, observer=observer)
