"""How many tokens texts have: upstream is asked, at `/tokenize`, beside a call for a list of them.

The answer to such a call tells only what all come to. Whatever goes wrong here only means that
nothing of that answer is stored. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import orjson

from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire.client import Unreachable
from sglang_cached_addon.wire.connection import Broken

PATH = "/tokenize"

SECONDS = 30.0
"""How long upstream may take: it waits behind what else is asked."""

_ABSENT = (404, 405, 501)

Counts = asyncio.Task[tuple[int, ...]]
"""What gives how many tokens each text has; nothing where that is not to be had."""


class Counting:
    """Asks one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._lacking: int | None = None
        """The version of the model whose server has no such route."""

    @contextmanager
    def beside(self, ask: Ask, texts: Sequence[str]) -> Iterator[Counts | None]:
        """Counts texts on a client's behalf, if there are any, while its call is under way."""
        task = asyncio.create_task(self._count(ask, texts)) if texts else None
        try:
            yield task
        finally:
            if task:
                task.cancel()

    async def _count(self, ask: Ask, texts: Sequence[str]) -> tuple[int, ...]:
        version, body = self._upstream.model.version, orjson.dumps({"prompt": texts})
        if self._lacking == version:
            return ()
        try:
            async with asyncio.timeout(SECONDS):
                answer = await self._upstream.client.ask("POST", PATH, ask.fields, body)
            found = orjson.loads(answer.body) if answer.status == 200 else None
        except (TimeoutError, Unreachable, Broken, ValueError):
            return ()
        if answer.status in _ABSENT:
            self._lacking = version
        counts = found.get("count") if isinstance(found, dict) else None
        if not isinstance(counts, list) or [type(count) for count in counts] != [int] * len(texts):
            return ()
        return tuple(counts)
