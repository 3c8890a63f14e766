"""How many tokens texts have: upstream is asked, at `/tokenize`, beside a call for a list of them.

The answer to such a call tells only what all come to. Whatever goes wrong here only means that
nothing of that answer is stored. Knows asyncio, and nothing of mitmproxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import orjson

from sglang_cached_addon.service.asking import Ask
from sglang_cached_addon.upstream import Upstream
from sglang_cached_addon.wire.client import Unreachable
from sglang_cached_addon.wire.connection import Broken

PATH = "/tokenize"

SECONDS = 30.0
"""How long upstream may take for one part: it waits behind what else is asked."""

PART = 256
"""So many texts are counted at a time: SGLang does nothing else meanwhile, for 10 ms or so."""

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
        if self._lacking == self._upstream.model.version:
            return ()
        counts: list[int] = []
        with suppress(TimeoutError, Unreachable, Broken, ValueError):
            for begin in range(0, len(texts), PART):
                counts += await self._part(ask, texts[begin : begin + PART])
            return tuple(counts)
        return ()

    async def _part(self, ask: Ask, texts: Sequence[str]) -> list[int]:
        """Raises ValueError where the answer tells no counts."""
        version, body = self._upstream.model.version, orjson.dumps({"prompt": texts})
        async with asyncio.timeout(SECONDS):
            answer = await self._upstream.client.ask("POST", PATH, ask.fields, body)
        if answer.status in _ABSENT:
            self._lacking = version
        found = orjson.loads(answer.body) if answer.status == 200 else None
        counts = found.get("count") if isinstance(found, dict) else None
        if not isinstance(counts, list) or [type(count) for count in counts] != [int] * len(texts):
            raise ValueError("no counts")
        return counts
